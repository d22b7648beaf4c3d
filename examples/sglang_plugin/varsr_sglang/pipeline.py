"""A pipeline of one stage: the engine. SGLang's executors and servers are around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from sglang.multimodal_gen.configs.pipeline_configs.base import PipelineConfig
from sglang.multimodal_gen.configs.sample.sampling_params import DataType, SamplingParams
from sglang.multimodal_gen.configs.task_type import ModelTaskType
from sglang.multimodal_gen.runtime.pipelines_core.composed_pipeline_base import ComposedPipelineBase
from sglang.multimodal_gen.runtime.pipelines_core.schedule_batch import OutputBatch
from sglang.multimodal_gen.runtime.pipelines_core.stages.base import PipelineStage

from varsr_engine import Engine
from varsr_engine.errors import InvalidParamsError


@dataclass
class VarsrPipelineConfig(PipelineConfig):
    task_type: ModelTaskType = ModelTaskType.I2I
    skip_input_image_preprocess: bool = True


@dataclass
class VarsrSamplingParams(SamplingParams):
    """`scale` is the output's size over the input's. Images are read from `image_path`; the prompt is not used."""

    data_type: DataType = DataType.IMAGE
    scale: float = 4.0

    @classmethod
    def image_request_extra_fields(cls) -> frozenset[str]:
        return super().image_request_extra_fields() | {"scale"}


class VarsrStage(PipelineStage):
    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, batch: Any, server_args: Any) -> OutputBatch:
        """One image a request: (1, H, W, 3) uint8, one frame. SGLang cuts floats to 8 bits, unrounded."""
        paths = batch.image_path if isinstance(batch.image_path, list) else [batch.image_path]
        if len(paths) != 1 or paths[0] is None:
            raise InvalidParamsError("image_path must name one image")
        seed = batch.seed[0] if isinstance(batch.seed, list) else batch.seed
        result = self.engine.upscale(paths[0], scale=batch.sampling_params.scale, seed=seed)
        frame = np.rint(result.picture.rgb * 255).astype(np.uint8)
        return OutputBatch(output=[frame[None]], metrics=batch.metrics)


class VarsrPipeline(ComposedPipelineBase):
    pipeline_name = "VarsrPipeline"
    _required_config_modules: ClassVar[list[str]] = []

    def load_modules(self, server_args: Any, loaded_modules: Any = None) -> dict[str, Any]:
        """The engine reads the model itself: SGLang's loaders expect a diffusers folder."""
        if loaded_modules is not None:
            return dict(loaded_modules)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return {"engine": Engine.from_pretrained(self.model_path, device=device)}

    def create_pipeline_stages(self, server_args: Any) -> None:
        self.add_stage(VarsrStage(self.get_module("engine")))


EntryClass = VarsrPipeline
