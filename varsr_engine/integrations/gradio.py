"""A Gradio page that upscales an image and shows it scale by scale: `varsr demo`, or `build_demo(engine).launch()`.

Needs Gradio 6: pip install 'varsr-engine[gradio]'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from PIL import Image, ImageOps

from varsr_engine.engine.engine import Engine
from varsr_engine.engine.result import UpscaleResult
from varsr_engine.errors import VarsrError
from varsr_engine.integrations.progress import Progress

PREVIEW_SIDE = 1024
MAX_WAITING = 32  # requests in Gradio's queue
HOUR = 3600  # how long Gradio keeps the files of a request
Pair = tuple[Image.Image, Image.Image]


def build_demo(engine: Engine) -> gr.Blocks:
    """The page, not yet served. It sends nothing anywhere by itself; see docs/integrations.md for what Gradio does."""
    with gr.Blocks(title="VARSR", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as demo:
        with gr.Row():
            with gr.Column():
                image = gr.Image(label="Image", type="filepath", image_mode=None, sources=["upload", "clipboard"])
                scale = gr.Slider(1, 8, value=4, step=0.5, label="Scale")
                preset = gr.Radio(["quality", "balanced", "fast"], value="quality", label="Preset")
                seed = gr.Number(value=0, precision=0, minimum=0, label="Seed")
                button = gr.Button("Upscale", variant="primary")
            with gr.Column():
                slider = gr.ImageSlider(label="Resized and upscaled", format="png", type="pil", interactive=False)
                status = gr.Markdown()
        button.click(
            upscaling(engine),
            [image, scale, preset, seed],
            [slider, status],
            api_name="upscale",
            concurrency_limit=max(1, engine.largest_batch),  # they share batches
        )
    demo.queue(max_size=MAX_WAITING)
    return demo


def upscaling(engine: Engine) -> Callable[[str | None, float, str, int], Iterator[tuple[Pair, str]]]:
    """What the button runs: pairs of the resized image and the image so far, with a line of text, to the result."""

    def upscale(path: str | None, scale: float, preset: str, seed: int) -> Iterator[tuple[Pair, str]]:
        if path is None:
            raise gr.Error("Choose an image first.")
        settings: dict[str, Any] = {"scale": scale, "preset": preset, "seed": int(seed)}
        try:
            progress = Progress(engine.stages(engine.params_of(None, settings)))
            for event in engine.stream(path, previews="latent", preview_max_side=PREVIEW_SIDE, **settings):
                if isinstance(event, UpscaleResult):
                    yield beside(path, event.image), told(event)
                    return
                done = progress.update(event)
                if event.preview is not None:
                    yield beside(path, event.preview.image), f"{done} of {progress.total} steps"
        except VarsrError as error:
            raise gr.Error(error.message) from None

    return upscale


def beside(path: str, image: Image.Image) -> Pair:
    """The source, upright and resized to the image's size, and the image."""
    with Image.open(path) as source:
        upright = ImageOps.exif_transpose(source).convert("RGB")
    return upright.resize(image.size, Image.Resampling.BICUBIC), image


def told(result: UpscaleResult) -> str:
    width, height = result.size
    text = f"{width} × {height} pixels, seed {result.seed}, {sum(result.seconds.values()):.1f} s"
    return "\n\n".join([text, *result.warnings])
