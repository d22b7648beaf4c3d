"""The SGLang plugin, on a stub of the seven names that it takes from SGLang 0.5.21."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.engine.test_tiling import picture
from tests.integrations.conftest import EXAMPLES
from varsr_engine.engine.engine import Engine
from varsr_engine.errors import InvalidParamsError

HOST = "sglang.multimodal_gen"


class ComposedPipelineBase:
    """What the host's base class does with a pipeline that is made."""

    def __init__(self, model_path: str, server_args: Any) -> None:
        self.model_path, self.stages = model_path, list[Any]()
        self.modules = self.load_modules(server_args)  # type: ignore[attr-defined]
        self.create_pipeline_stages(server_args)  # type: ignore[attr-defined]

    def get_module(self, name: str) -> Any:
        return self.modules[name]

    def add_stage(self, stage: Any) -> None:
        self.stages.append(stage)


class PipelineStage:
    def __call__(self, batch: Any, server_args: Any) -> Any:
        return self.forward(batch, server_args)  # type: ignore[attr-defined]


@dataclass
class PipelineConfig:
    task_type: Any = None


@dataclass
class SamplingParams:
    data_type: Any = None
    image_path: Any = None
    seed: int = 42

    @classmethod
    def image_request_extra_fields(cls) -> frozenset[str]:
        return frozenset()


@dataclass
class OutputBatch:
    output: Any = None
    metrics: Any = None


@pytest.fixture
def registered(
    lend: Engine, stub_modules: Callable[..., ModuleType], monkeypatch: pytest.MonkeyPatch
) -> Iterator[SimpleNamespace]:
    calls = SimpleNamespace()

    def register(pipeline: Any, **settings: Any) -> None:
        calls.pipeline = pipeline
        calls.__dict__.update(settings)

    stub_modules(f"{HOST}.registry", register_pipeline=register)
    stub_modules(f"{HOST}.configs.pipeline_configs.base", PipelineConfig=PipelineConfig)
    stub_modules(f"{HOST}.configs.task_type", ModelTaskType=Enum("ModelTaskType", ["I2V", "I2I"]))
    stub_modules(
        f"{HOST}.configs.sample.sampling_params",
        SamplingParams=SamplingParams,
        DataType=Enum("DataType", ["IMAGE", "VIDEO"]),
    )
    core = f"{HOST}.runtime.pipelines_core"
    stub_modules(f"{core}.composed_pipeline_base", ComposedPipelineBase=ComposedPipelineBase)
    stub_modules(f"{core}.schedule_batch", OutputBatch=OutputBatch)
    stub_modules(f"{core}.stages.base", PipelineStage=PipelineStage)
    monkeypatch.syspath_prepend(str(EXAMPLES / "sglang_plugin"))
    importlib.import_module("varsr_sglang")  # as SGLANG_EXTERNAL_MODEL_PACKAGE does
    yield calls
    for name in [name for name in sys.modules if name.split(".")[0] == "varsr_sglang"]:
        del sys.modules[name]


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    Image.fromarray(picture(8, 8)).save(path)
    return str(path)


def run(registered: SimpleNamespace, **settings: Any) -> OutputBatch:
    (stage,) = registered.pipeline("varsr-mini", None).stages
    params = registered.sampling_param_cls(**settings)
    batch = SimpleNamespace(sampling_params=params, image_path=params.image_path, seed=params.seed, metrics="timed")
    output: OutputBatch = stage(batch, None)
    return output


def test_an_image_is_upscaled(registered: SimpleNamespace, photo: str, micro: Engine) -> None:
    output = run(registered, image_path=[photo], seed=3)
    (frames,) = output.output
    assert frames.shape == (1, 32, 32, 3) and frames.dtype == np.uint8 and output.metrics == "timed"
    assert np.array_equal(frames[0], micro.upscale(photo, seed=3).array)
    assert run(registered, image_path=photo, scale=2).output[0].shape == (1, 16, 16, 3)


def test_one_image_is_needed(registered: SimpleNamespace, photo: str) -> None:
    for paths in (None, [photo, photo]):
        with pytest.raises(InvalidParamsError, match="image_path must name one image"):
            run(registered, image_path=paths)


def test_it_is_what_the_host_asks_for(registered: SimpleNamespace) -> None:
    assert registered.pipeline.pipeline_name == "VarsrPipeline"
    assert registered.pipeline_config_cls().task_type.name == "I2I"
    assert registered.sampling_param_cls().data_type.name == "IMAGE"
    assert "scale" in registered.sampling_param_cls.image_request_extra_fields()
    (detect,) = registered.model_detectors
    assert detect("org/VARSR-d24") and not detect("org/flux")
