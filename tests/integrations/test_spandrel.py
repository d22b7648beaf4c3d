"""The spandrel architecture, on a stub of spandrel's interface, and on spandrel itself where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Generic, TypeVar

import pytest
import torch

from tests.engine.test_previews import MAP
from tests.engine.test_tiling import MICRO, WEIGHTS, picture
from varsr_engine.checkpoint import TensorCheckpoint, open_checkpoint
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.params import EngineConfig
from varsr_engine.errors import CheckpointMismatchError, InvalidParamsError

MODULE = "varsr_engine.integrations.spandrel"
TENSORS = WEIGHTS | MAP
T = TypeVar("T")


class Architecture(Generic[T]):
    def __init__(self, *, id: str, detect: Callable[[Any], bool], name: str | None = None) -> None:
        self.id, self.detect = id, detect


class ArchSupport:
    def __init__(self, architecture: Any) -> None:
        self.architecture = architecture

    @classmethod
    def from_architecture(cls, architecture: Any) -> ArchSupport:
        return cls(architecture)


class Registry:
    def __init__(self) -> None:
        self.entries: dict[str, ArchSupport] = {}

    def add(self, *entries: ArchSupport, ignore_duplicates: bool = False) -> None:
        for entry in entries:
            assert ignore_duplicates or entry.architecture.id not in self.entries
            self.entries.setdefault(entry.architecture.id, entry)

    def load(self, tensors: Any) -> Any:
        (found,) = [e.architecture for e in self.entries.values() if e.architecture.detect(tensors)]
        return found.load(tensors)


class Descriptor(Generic[T]):
    """What spandrel's ImageModelDescriptor does with a module."""

    def __init__(self, model: Any, state_dict: Any, architecture: Any, scale: int, **settings: Any) -> None:
        self.model, self.scale, self.tiling = model, scale, settings["tiling"]
        model.load_state_dict(state_dict)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self, *place: Any) -> Descriptor[T]:
        self.model.to(*place)
        return self

    @torch.inference_mode()
    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.model.eval()(image)
        return output.clamp_(0, 1)


@pytest.fixture(params=["stub", pytest.param("spandrel", marks=pytest.mark.slow)])
def registry(
    request: pytest.FixtureRequest, stub_modules: Callable[..., ModuleType], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """An empty registry of the host, which `spandrel` takes for its own."""
    if request.param == "stub":
        host: Any = stub_modules(
            "spandrel",
            Architecture=Architecture,
            ArchSupport=ArchSupport,
            ImageModelDescriptor=Descriptor,
            ModelTiling=Enum("ModelTiling", ["SUPPORTED", "DISCOURAGED", "INTERNAL"]),
            SizeRequirements=SimpleNamespace,
            MAIN_REGISTRY=Registry(),
        )
        own: Any = host.MAIN_REGISTRY
    else:
        if importlib.util.find_spec("spandrel") is None:
            pytest.skip("spandrel is not installed")
        if importlib.util.find_spec("torchvision") is None:  # two of spandrel's own architectures import it
            stub_modules("torchvision.transforms.functional", InterpolationMode=None, rotate=None, normalize=None)
        host = importlib.import_module("spandrel")
        own = host.ArchRegistry()
        monkeypatch.setattr(host, "MAIN_REGISTRY", own)
    sys.modules.pop(MODULE, None)
    yield own
    sys.modules.pop(MODULE, None)


@pytest.fixture
def module(registry: Any) -> Any:
    return importlib.import_module(MODULE)


@pytest.fixture
def loaded(module: Any, registry: Any) -> Any:
    module.install(configs=[MICRO])
    return registry.load(dict(TENSORS))


def image(width: int = 8, height: int = 8) -> torch.Tensor:
    return torch.from_numpy(picture(width, height)).permute(2, 0, 1)[None].float() / 255


def test_an_image_is_the_engines(loaded: Any) -> None:
    engine = Engine(TensorCheckpoint(TENSORS, MICRO, "micro"), EngineConfig(device="cpu"))
    output = loaded(image())
    assert output.shape == (1, 3, 32, 32) and output.dtype == torch.float32
    assert torch.equal(output[0], engine.upscale(image()).tensor)
    assert torch.equal(output, loaded(image()))


def test_large_images_are_tiled_inside(module: Any, loaded: Any) -> None:
    assert loaded.tiling.name == "INTERNAL" and loaded.scale == 4
    assert loaded(image(13, 9)).shape == (1, 3, 36, 52)


def test_moving_drops_the_engine(loaded: Any) -> None:
    loaded(image())
    engine = loaded.model._engine
    loaded.to(torch.device("cpu"))
    assert loaded.model._engine is engine is not None and loaded.device.type == "cpu"
    loaded.to(torch.float16)
    assert loaded.model._engine is None
    with pytest.raises(InvalidParamsError, match="dtype fp16 needs a CUDA device"):
        loaded(image().half())
    loaded.to(torch.float32)
    assert loaded(image()).shape == (1, 3, 32, 32)


def test_installing_twice_changes_nothing(module: Any, registry: Any) -> None:
    module.install()
    module.install()
    assert not module.VarsrArchitecture().detect({"conv_first.weight": torch.zeros(1)})


def test_unknown_shapes_are_told(module: Any, registry: Any) -> None:
    module.install()
    with pytest.raises(CheckpointMismatchError, match="give the model's with install"):
        registry.load(dict(TENSORS))


def test_the_packaged_model_is_known(module: Any) -> None:
    checkpoint = open_checkpoint("varsr-mini")
    read = checkpoint.open()
    tensors = {name: read(name) for name in checkpoint.shapes}
    assert module.config_of(tensors) == checkpoint.config


@pytest.mark.slow
@pytest.mark.parametrize("registry", ["spandrel"], indirect=True)
def test_the_hosts_loader_reads_a_file(registry: Any, module: Any) -> None:
    import spandrel

    module.install()
    path = Path(str(open_checkpoint("varsr-mini").path))
    loaded = spandrel.ModelLoader(registry=registry).load_from_file(path)
    assert isinstance(loaded, spandrel.ImageModelDescriptor)
    assert loaded.architecture.id == "VARSR" and loaded.tags == ["d6"]
    assert loaded(image(16, 16)).shape == (1, 3, 64, 64)
