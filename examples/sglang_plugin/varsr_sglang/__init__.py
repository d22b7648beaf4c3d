"""VARSR for SGLang Diffusion, which imports the package that SGLANG_EXTERNAL_MODEL_PACKAGE names: this one."""

from __future__ import annotations

from sglang.multimodal_gen.registry import register_pipeline

from varsr_sglang.pipeline import VarsrPipeline, VarsrPipelineConfig, VarsrSamplingParams

register_pipeline(
    VarsrPipeline,
    sampling_param_cls=VarsrSamplingParams,
    pipeline_config_cls=VarsrPipelineConfig,
    hf_model_paths=["varsr-mini"],
    model_detectors=[lambda name: "varsr" in name.lower()],
)
