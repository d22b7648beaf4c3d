"""The vLLM-Omni plugin, on a stub of the four names that it takes from vLLM-Omni 0.30."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.engine.test_tiling import picture
from tests.integrations.conftest import EXAMPLES
from varsr_engine.engine.engine import Engine

FOLDER = EXAMPLES / "vllm_omni_plugin"


@dataclass
class DiffusionOutput:
    output: Any = None
    error: str | None = None
    error_status_code: int | None = None
    error_type: str | None = None


@dataclass
class Sampling:
    seed: int | None = None
    extra_args: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def registered(
    lend: Engine, stub_modules: Callable[..., ModuleType], monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """What the plugin registered with the host."""
    calls: dict[str, Any] = {}
    stub_modules("vllm_omni.diffusion.registry", register_diffusion_model=lambda **settings: calls.update(settings))
    stub_modules("vllm_omni.diffusion.data", DiffusionOutput=DiffusionOutput)
    stub_modules("vllm_omni.diffusion.distributed.utils", get_local_device=lambda: torch.device("cpu"))
    monkeypatch.syspath_prepend(str(FOLDER))
    entry = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]["entry-points"]
    module, _, function = entry["vllm_omni.general_plugins"]["varsr"].partition(":")
    register = getattr(importlib.import_module(module), function)
    register()
    register()  # vLLM-Omni may load plugins more than once
    yield calls
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        del sys.modules[name]


@pytest.fixture
def pipeline(registered: dict[str, Any]) -> Any:
    module = importlib.import_module(registered["module_name"])
    return getattr(module, registered["class_name"])(od_config=SimpleNamespace(model="varsr-mini"))


def batch(*requests: tuple[Any, Sampling]) -> Any:
    return SimpleNamespace(requests=[SimpleNamespace(prompt=p, sampling_params=s) for p, s in requests])


def prompt(image: Any) -> dict[str, Any]:
    return {"prompt": "", "multi_modal_data": {"image": image}}


IMAGE = Image.fromarray(picture(8, 8))


def test_requests_get_their_own_images(pipeline: Any, registered: dict[str, Any], micro: Engine) -> None:
    settings = Sampling(seed=3, extra_args={"varsr": {"scale": 2}})
    outputs = pipeline.forward(batch((prompt(IMAGE), Sampling(seed=1)), (prompt([IMAGE]), settings)))
    assert [tuple(one.output.shape) for one in outputs] == [(1, 3, 32, 32), (1, 3, 16, 16)]
    post = getattr(importlib.import_module(registered["module_name"]), registered["post_process_func_name"])(None)
    (image,) = post(outputs[0].output)
    assert np.abs(np.asarray(image, int) - micro.upscale(IMAGE, seed=1).array).max() <= 1


@pytest.mark.parametrize("bad", ["a prompt", {"prompt": ""}, prompt([IMAGE, IMAGE]), prompt(None)])
def test_a_bad_request_fails_alone(pipeline: Any, bad: Any) -> None:
    first, second = pipeline.forward(batch((bad, Sampling()), (prompt(IMAGE), Sampling())))
    assert first.output is None and "one image" in first.error
    assert (first.error_status_code, first.error_type) == (422, "invalid_params")
    assert second.error is None and second.output is not None


def test_bad_settings_are_told(pipeline: Any) -> None:
    (output,) = pipeline.forward(batch((prompt(IMAGE), Sampling(extra_args={"varsr": {"scale": -1}}))))
    assert "scale must be" in output.error


def test_it_is_what_the_host_asks_for(pipeline: Any, registered: dict[str, Any]) -> None:
    assert registered["model_arch"] == "VarsrPipeline"
    assert isinstance(pipeline, torch.nn.Module) and pipeline.load_weights([]) == set()
    assert pipeline.support_image_input and pipeline.color_format == "RGB" and pipeline.supports_request_batch


def test_registering_imports_no_torch() -> None:
    """Plugins run in every process of the host, before it chooses devices."""
    script = "import sys, varsr_vllm_omni; assert 'torch' not in sys.modules and 'varsr_engine' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], cwd=FOLDER, check=True, timeout=60)
