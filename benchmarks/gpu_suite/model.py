"""A network of the published shapes with random weights, made tensor by tensor where it is needed, and kept nowhere."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from benchmarks.gpu_suite.work import NotRun
from tests.golden_cases import _mean_and_std
from varsr_engine.checkpoint import Checkpoint
from varsr_engine.config import ModelConfig
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.params import EngineConfig
from varsr_engine.errors import KernelUnavailableError
from varsr_engine.model.shapes import state_shapes

SEED = 20
NOT_RUN = ("vae.encoder.", "vae.quant_conv.")  # names of the autoencoder's first half, which is for training
TYPICAL_SCALE, LARGE_SCALE = (1.386, 0.25), (2.7, 0.25)  # mean and deviation of log attention scales: 4, and 15


class RandomCheckpoint(Checkpoint):
    """Uniform weights of the scales of the golden cases (tests/golden_cases.py), drawn on the device in float32.

    Published attention scales start at 4 and most heads stay near it; large ones take attention's other path.
    """

    def __init__(
        self, config: ModelConfig, device: torch.device, log_scale: tuple[float, float] = TYPICAL_SCALE
    ) -> None:
        self._device, self._log_scale = device, log_scale
        shapes = state_shapes(config)
        super().__init__(Path("random"), config, {name: (shape, "F32") for name, shape in shapes.items()})

    def open(self) -> Callable[[str], torch.Tensor]:
        return self._draw

    def _draw(self, name: str) -> torch.Tensor:
        shape = self.shapes[name]
        mean, std = _mean_and_std(name.removeprefix("transformer."), shape)
        if name.endswith("scale_mul_1H11"):
            mean, std = self._log_scale
        generator = torch.Generator(self._device).manual_seed(SEED + zlib.crc32(name.encode()))
        values = torch.rand(shape, generator=generator, device=self._device)
        return values.mul_(2.0).sub_(1.0).mul_(3**0.5 * std).add_(mean)


class KeptCheckpoint(Checkpoint):
    """Tensors where they are: several engines share them."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], config: ModelConfig, name: str) -> None:
        self._tensors = dict(tensors)
        super().__init__(Path(name), config, {key: (tuple(t.shape), "F32") for key, t in tensors.items()})

    def open(self) -> Callable[[str], torch.Tensor]:
        return self._tensors.__getitem__


def engine_config(device: torch.device, mode: str, **options: object) -> EngineConfig:
    """Settings of a mode: fp32, fp16, bf16, or fp8 on top of fp16."""
    values: dict[str, object] = {"device": str(device), "dtype": mode, **options}
    if mode == "fp8":
        values |= {"dtype": "fp16" if device.type == "cuda" else "fp32", "quantization": "fp8"}
    return EngineConfig(**values)  # type: ignore[arg-type]


def load_engine(checkpoint: Checkpoint, config: EngineConfig) -> Engine:
    """The engine. Where it refuses fp8 on this device: NotRun, with its words."""
    try:
        return Engine(checkpoint, config)
    except KernelUnavailableError as error:
        if config.quantization != "fp8":
            raise
        raise NotRun(str(error)) from error


def random_input(config: ModelConfig, batch: int, device: torch.device) -> torch.Tensor:
    """Pictures in [-1, 1] on the device."""
    generator = torch.Generator(device).manual_seed(SEED)
    shape = (batch, 3, config.image_side, config.image_side)
    return torch.rand(shape, generator=generator, device=device).mul_(2.0).sub_(1.0)
