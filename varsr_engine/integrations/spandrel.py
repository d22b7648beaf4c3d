"""VARSR as an architecture of spandrel, which ComfyUI's and chaiNNer's "load upscale model" nodes go through.

from varsr_engine.integrations.spandrel import install

install()
model = spandrel.ModelLoader().load_from_file("model.safetensors")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from spandrel import MAIN_REGISTRY, Architecture, ArchSupport, ImageModelDescriptor, ModelTiling, SizeRequirements

from varsr_engine.checkpoint import DTYPES, TensorCheckpoint, open_checkpoint
from varsr_engine.config import ModelConfig
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.params import EngineConfig
from varsr_engine.errors import CheckpointMismatchError
from varsr_engine.model.shapes import state_shapes
from varsr_engine.packaged import DEFAULT_MODEL

SCALE = 4
KEYS = ("transformer.pos_start", "transformer.con_embedding.conv_in.weight", "vae.quantize.embedding.weight")


def install(*, configs: Iterable[ModelConfig] = (), registry: Any = MAIN_REGISTRY) -> None:
    """Teach spandrel to load VARSR's weights. Calling it again changes nothing.

    configs: of models beside the published one and varsr-mini, because spandrel reads tensors alone.
    """
    registry.add(ArchSupport.from_architecture(VarsrArchitecture(configs)), ignore_duplicates=True)


class VarsrModule(torch.nn.Module):
    """An engine as a module: [1, 3, H, W] to [1, 3, 4 H, 4 W], both in [0, 1].

    It runs where its one parameter is and in that dtype. Moving it drops the engine, and with it the device's memory;
    the next image makes one there. Seed 0: the same image gives the same result.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.place = torch.nn.Parameter(torch.zeros(()), requires_grad=False)
        self._tensors: Mapping[str, torch.Tensor] = {}
        self._engine: Engine | None = None

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Keep the tensors for the engine. They are checked when it is made."""
        self._tensors, self._engine = dict(state_dict), None
        return super().load_state_dict({"place": self.place})

    def _apply(self, fn: Any, recurse: bool = True) -> VarsrModule:
        before = self.place.device, self.place.dtype
        super()._apply(fn, recurse)
        if before != (self.place.device, self.place.dtype):
            self._engine = None
        return self

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            dtype = next(name for name, known in DTYPES.items() if known == self.place.dtype)
            checkpoint = TensorCheckpoint(self._tensors, self.config, "spandrel")
            self._engine = Engine(checkpoint, EngineConfig.resolve(device=str(self.place.device), dtype=dtype))
        return self._engine

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.engine.upscale(image, scale=SCALE).tensor[None].to(image)


class VarsrArchitecture(Architecture[VarsrModule]):
    def __init__(self, configs: Iterable[ModelConfig] = ()) -> None:
        super().__init__(id="VARSR", detect=lambda tensors: all(key in tensors for key in KEYS))
        self._configs = tuple(configs)

    def load(self, state_dict: Mapping[str, torch.Tensor]) -> ImageModelDescriptor[VarsrModule]:
        """Raises CheckpointMismatchError for a model whose config is not known."""
        config = config_of(state_dict, self._configs)
        return ImageModelDescriptor(
            VarsrModule(config),
            state_dict,
            architecture=self,
            purpose="SR",
            tags=[f"d{config.depth}"],
            supports_half=True,
            supports_bfloat16=True,
            scale=SCALE,
            input_channels=3,
            output_channels=3,
            size_requirements=SizeRequirements(),
            tiling=ModelTiling.INTERNAL,
        )


def config_of(tensors: Mapping[str, torch.Tensor], more: Iterable[ModelConfig] = ()) -> ModelConfig:
    """The first config that has the tensors' shapes: of `more`, of the published model, of varsr-mini."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for config in (*more, ModelConfig.varsr_d24(), open_checkpoint(DEFAULT_MODEL).config):
        wanted = state_shapes(config).items()
        if all(shapes.get(name) == shape for name, shape in wanted if not name.startswith("vae.encoder.")):
            return config
    raise CheckpointMismatchError(
        "the tensors' shapes are not those of the published VARSR model or of varsr-mini, and spandrel reads no "
        "config: give the model's with install(configs=[...])"
    )
