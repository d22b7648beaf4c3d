"""Registers VARSR with vLLM-Omni. Runs in each of its processes: neither torch nor a device is touched here."""

from __future__ import annotations

ARCHITECTURE = "VarsrPipeline"  # `_class_name` in the model's model_index.json


def register() -> None:
    """Called by vLLM-Omni for the entry point, once a process or more."""
    from vllm_omni.diffusion.registry import register_diffusion_model

    register_diffusion_model(
        model_arch=ARCHITECTURE,
        module_name="varsr_vllm_omni.pipeline",
        class_name="VarsrOmniPipeline",
        post_process_func_name="post_process",
    )
