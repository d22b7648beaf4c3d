"""The nodes. ComfyUI stays in control: its models make room, its button stops, and memory is given back."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import torch
from comfy import model_management
from comfy_api.latest import ComfyAPISync, ComfyExtension, io

from varsr_engine.engine.engine import Engine
from varsr_engine.engine.result import UpscaleResult
from varsr_engine.integrations.progress import Progress

CATEGORY = "image/upscaling"
PREVIEW_SIDE = 512
VarsrModel = io.Custom("VARSR_MODEL")


class LazyEngine:
    """A model's name and settings; its engine, while there is one."""

    def __init__(self, model: str, dtype: str) -> None:
        self.model, self.dtype = model, dtype
        self._engine: Engine | None = None

    def load(self) -> Engine:
        """The engine on ComfyUI's device, which is asked to make room for it."""
        if self._engine is None:
            device = model_management.get_torch_device()
            engine = Engine.from_pretrained(self.model, device=str(device), dtype=self.dtype)
            model_management.free_memory(engine.memory_plan(1).peak, device)
            self._engine = engine
        return self._engine

    def release(self) -> None:
        """Drop the engine and give its memory back."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            gc.collect()
            model_management.soft_empty_cache()


class VarsrLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="VarsrLoader",
            display_name="VARSR Loader",
            category=CATEGORY,
            description="Names a VARSR model. Its weights are loaded when an image is upscaled.",
            inputs=[
                io.String.Input("model", default="varsr-mini", tooltip="A folder, a .safetensors file, or a hub id."),
                io.Combo.Input("dtype", options=["auto", "fp32", "fp16", "bf16"], default="auto"),
            ],
            outputs=[VarsrModel.Output(display_name="model")],
        )

    @classmethod
    def execute(cls, model: str, dtype: str) -> Any:
        return io.NodeOutput(LazyEngine(model, dtype))


class VarsrUpscale(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="VarsrUpscale",
            display_name="VARSR Upscale",
            category=CATEGORY,
            description="Upscales images of any size, with a preview after every scale.",
            inputs=[
                VarsrModel.Input("model"),
                io.Image.Input("image"),
                io.Float.Input("scale", default=4.0, min=0.25, max=16.0, step=0.25),
                io.Int.Input("seed", default=0, min=0, max=2**63 - 1, control_after_generate=True),
                io.Combo.Input("preset", options=["quality", "balanced", "fast"], default="quality"),
                io.Combo.Input("color_fix", options=["model", "wavelet", "adain", "none"], default="model"),
                io.Boolean.Input(
                    "keep_loaded", default=False, tooltip="Faster next time, but the weights stay in memory."
                ),
            ],
            outputs=[io.Image.Output(display_name="image")],
        )

    @classmethod
    def execute(
        cls,
        model: LazyEngine,
        image: torch.Tensor,
        scale: float,
        seed: int,
        preset: str,
        color_fix: str,
        keep_loaded: bool,
    ) -> Any:
        """image (B, H, W, C) in [0, 1]; the result has its channels. The i-th image of a batch has seed + i."""
        settings = {"scale": scale, "preset": preset, "color_fix": None if color_fix == "model" else color_fix}
        try:
            engine = model.load()
            results = [
                upscaled(engine, one.cpu().numpy(), (i, len(image)), seed=(seed + i) % 2**63, **settings)
                for i, one in enumerate(image)
            ]
        finally:
            if not keep_loaded:
                model.release()
        return io.NodeOutput(torch.stack([tensor_of(result) for result in results]))


def upscaled(engine: Engine, pixels: Any, place: tuple[int, int], **settings: Any) -> UpscaleResult:
    """One image; ComfyUI's bar shows how far it is, place being (its index, images in all)."""
    api, (index, count) = ComfyAPISync(), place
    progress = Progress(engine.stages(engine.params_of(None, settings)))
    model_management.throw_exception_if_processing_interrupted()
    for event in engine.stream(pixels, previews="latent", preview_max_side=PREVIEW_SIDE, **settings):
        if isinstance(event, UpscaleResult):
            return event
        model_management.throw_exception_if_processing_interrupted()  # leaving the loop cancels the request
        done = progress.update(event)
        preview = None if event.preview is None else event.preview.image
        api.execution.set_progress(index * progress.total + done, count * progress.total, preview_image=preview)
    raise AssertionError("a stream ends with its result")


def tensor_of(result: UpscaleResult) -> torch.Tensor:
    """(H, W, C): RGB, and alpha if there is one."""
    picture = result.picture
    pixels = picture.rgb if picture.alpha is None else np.dstack([picture.rgb, picture.alpha])
    return torch.from_numpy(np.ascontiguousarray(pixels))


class VarsrExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[Any]]:
        return [VarsrLoader, VarsrUpscale]
