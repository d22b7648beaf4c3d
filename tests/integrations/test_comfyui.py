"""The ComfyUI node pack, on a stub of the parts of ComfyUI that it uses (its V3 API and its model management)."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.engine.test_tiling import picture
from varsr_engine.engine.engine import Engine
from varsr_engine.errors import ModelNotFoundError

PACKAGE = "varsr_engine.integrations.comfyui"
FOLDER = Path(__file__).parents[2] / "varsr_engine" / "integrations" / "comfyui"


class Interrupted(Exception):
    """ComfyUI's InterruptProcessingException."""


class Host:
    """What the nodes did to ComfyUI, and whether its button was pressed."""

    def __init__(self) -> None:
        self.progress: list[tuple[float, float, Any]] = []
        self.freed: list[float] = []
        self.emptied = 0
        self.interrupt_after: int | None = None

    def set_progress(self, value: float, max_value: float, node_id: Any = None, preview_image: Any = None) -> None:
        self.progress.append((value, max_value, preview_image))

    def check(self) -> None:
        if self.interrupt_after is not None and len(self.progress) >= self.interrupt_after:
            raise Interrupted

    def free_memory(self, memory_required: float, device: torch.device) -> None:
        self.freed.append(memory_required)

    def empty_cache(self) -> None:
        self.emptied += 1


class Port:
    """An input or output of a node."""

    def __init__(self, id: str | None = None, **settings: Any) -> None:
        self.id, self.settings = id, settings


class Schema:
    def __init__(self, node_id: str, display_name: str, category: str, description: str, inputs: Any, outputs: Any):
        self.node_id, self.inputs, self.outputs = node_id, inputs, outputs


class NodeOutput:
    def __init__(self, *result: Any) -> None:
        self.result = result


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def nodes(host: Host, stub_modules: Callable[..., ModuleType]) -> Iterator[Any]:
    kind = SimpleNamespace(Input=Port, Output=Port)
    io = SimpleNamespace(
        ComfyNode=object, Schema=Schema, NodeOutput=NodeOutput, Custom=lambda name: kind,
        String=kind, Combo=kind, Image=kind, Float=kind, Int=kind, Boolean=kind,
    )  # fmt: skip
    stub_modules(
        "comfy_api.latest",
        ComfyAPISync=lambda: SimpleNamespace(execution=host),
        ComfyExtension=object,
        io=io,
    )
    stub_modules(
        "comfy.model_management",
        get_torch_device=lambda: torch.device("cpu"),
        free_memory=host.free_memory,
        soft_empty_cache=host.empty_cache,
        throw_exception_if_processing_interrupted=host.check,
    )
    yield importlib.import_module(f"{PACKAGE}.nodes")
    sys.modules.pop(f"{PACKAGE}.nodes")


@pytest.fixture
def loaded(nodes: Any, micro: Engine, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The loader's output; its engine is the shared one, not closed by a release."""
    monkeypatch.setattr(nodes.Engine, "from_pretrained", lambda *args, **settings: micro)
    monkeypatch.setattr(micro, "close", lambda: None)
    (model,) = nodes.VarsrLoader.execute("micro", "auto").result
    return model


SETTINGS: dict[str, Any] = {
    "scale": 4.0, "seed": 3, "preset": "quality", "color_fix": "model", "keep_loaded": False,
}  # fmt: skip


def batch(count: int, channels: int = 3) -> torch.Tensor:
    images = [picture(8, 8, channels, seed) / np.float32(255) for seed in range(count)]
    return torch.from_numpy(np.stack(images).astype(np.float32))


def test_the_entry_point_lists_the_nodes(nodes: Any) -> None:
    extension = asyncio.run(importlib.import_module(PACKAGE).comfy_entrypoint())
    listed = asyncio.run(extension.get_node_list())
    assert [node.define_schema().node_id for node in listed] == ["VarsrLoader", "VarsrUpscale"]


def test_inputs_are_the_arguments_of_execute(nodes: Any) -> None:
    for node in (nodes.VarsrLoader, nodes.VarsrUpscale):
        code = node.execute.__func__.__code__
        assert [port.id for port in node.define_schema().inputs] == list(code.co_varnames[1 : code.co_argcount])


def test_a_batch_is_upscaled(nodes: Any, loaded: Any, micro: Engine) -> None:
    images = batch(2)
    (result,) = nodes.VarsrUpscale.execute(loaded, images, **SETTINGS).result
    assert result.shape == (2, 32, 32, 3) and result.dtype == torch.float32
    expected = micro.upscale(images[1].numpy(), seed=4).tensor.permute(1, 2, 0)
    assert torch.allclose(result[1], expected, atol=1e-4)


def test_alpha_is_kept(nodes: Any, loaded: Any) -> None:
    (result,) = nodes.VarsrUpscale.execute(loaded, batch(1, 4), **SETTINGS).result
    assert result.shape == (1, 32, 32, 4)


def test_progress_and_previews(nodes: Any, loaded: Any, host: Host, micro: Engine) -> None:
    nodes.VarsrUpscale.execute(loaded, batch(2), **SETTINGS)
    total = 2 * len(micro.stages(micro.params_of(None, {})))
    values = [value for value, _, _ in host.progress]
    assert values == sorted(values) and values[-1] == total
    assert {most for _, most, _ in host.progress} == {total}
    shown = [preview for _, _, preview in host.progress if preview is not None]
    assert len(shown) > 2 * micro.model_config.num_scales
    assert all(isinstance(preview, Image.Image) for preview in shown)


def test_an_interrupt_cancels(nodes: Any, loaded: Any, host: Host, micro: Engine) -> None:
    host.interrupt_after = 2
    cancelled = micro.stats().cancelled
    with pytest.raises(Interrupted):
        nodes.VarsrUpscale.execute(loaded, batch(1), **SETTINGS)
    assert len(host.progress) == 2
    assert micro.stats().cancelled == cancelled + 1
    assert host.emptied == 1  # memory is given back here too


def test_memory_is_asked_for_and_given_back(nodes: Any, loaded: Any, host: Host, micro: Engine) -> None:
    nodes.VarsrUpscale.execute(loaded, batch(1), **SETTINGS | {"keep_loaded": True})
    assert (host.freed, host.emptied) == ([micro.memory_plan(1).peak], 0)
    nodes.VarsrUpscale.execute(loaded, batch(1), **SETTINGS)
    assert (len(host.freed), host.emptied) == (1, 1)
    assert loaded._engine is None
    nodes.VarsrUpscale.execute(loaded, batch(1), **SETTINGS)
    assert (len(host.freed), host.emptied) == (2, 2)


def test_a_missing_model_is_told(nodes: Any) -> None:
    (model,) = nodes.VarsrLoader.execute("/no/such/model", "auto").result
    with pytest.raises(ModelNotFoundError):
        nodes.VarsrUpscale.execute(model, batch(1), **SETTINGS)


def test_the_pack_names_no_torch() -> None:
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    required = [line for line in (FOLDER / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert project["project"]["dependencies"] == required == ["varsr-engine"]
    assert project["tool"]["comfy"]["DisplayName"] and project["tool"]["comfy"]["PublisherId"]


def test_the_folder_alone_is_a_pack(nodes: Any, tmp_path: Path) -> None:
    """ComfyUI imports a folder of custom_nodes by its path, under a name of its own."""
    link = tmp_path / "varsr"
    link.symlink_to(FOLDER)
    spec = importlib.util.spec_from_file_location("custom-varsr", link / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["custom-varsr"] = module
    try:
        spec.loader.exec_module(module)
        assert len(asyncio.run(asyncio.run(module.comfy_entrypoint()).get_node_list())) == 2
    finally:
        for name in [n for n in sys.modules if n.startswith("custom-varsr")]:
            del sys.modules[name]
