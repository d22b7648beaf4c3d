"""The pipeline that vLLM-Omni's workers run: an image in the prompt, the upscaled image out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from vllm_omni.diffusion.data import DiffusionOutput
from vllm_omni.diffusion.distributed.utils import get_local_device

from varsr_engine import Engine, VarsrError
from varsr_engine.errors import InvalidParamsError


class VarsrOmniPipeline(torch.nn.Module):
    """An engine. Requests that vLLM-Omni schedules together are submitted together, and share batches."""

    support_image_input: ClassVar[bool] = True
    color_format: ClassVar[str] = "RGB"
    supports_request_batch: ClassVar[bool] = True

    def __init__(self, *, od_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.device = get_local_device()
        self.engine = Engine.from_pretrained(od_config.model, device=str(self.device))

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """The engine has read them; there are no others."""
        return set()

    def forward(self, batch: Any) -> list[DiffusionOutput]:
        """One output (1, 3, H, W) in [0, 1] a request; a request that fails has an error, and fails alone."""
        handles: list[Any] = []
        for request in batch.requests:
            try:
                image, settings = image_of(request.prompt), settings_of(request.sampling_params)
                handles.append(self.engine.submit(image, **settings))
            except VarsrError as error:
                handles.append(error)
        return [output_of(handle) for handle in handles]


def image_of(prompt: Any) -> Any:
    """The one image of a prompt; its text is not used."""
    data = prompt.get("multi_modal_data") if isinstance(prompt, dict) else None
    images = (data or {}).get("image")
    images = images if isinstance(images, list) else [images]
    if len(images) != 1 or images[0] is None:
        count = sum(image is not None for image in images)
        raise InvalidParamsError(f"the prompt must hold one image in multi_modal_data, got {count}")
    return images[0]


def settings_of(sampling: Any) -> dict[str, Any]:
    """Seed, and fields of UpscaleParams in extra_args["varsr"]; scale is 4 where neither gives a size."""
    seed = {} if sampling.seed is None else {"seed": int(sampling.seed)}
    return seed | dict((sampling.extra_args or {}).get("varsr", {}))


def output_of(handle: Any) -> DiffusionOutput:
    try:
        if isinstance(handle, VarsrError):
            raise handle
        return DiffusionOutput(output=handle.result().tensor[None])
    except VarsrError as error:
        return DiffusionOutput(error=error.message, error_status_code=error.http_status, error_type=error.code)


def post_process(od_config: Any) -> Callable[[torch.Tensor], list[Any]]:
    """vLLM-Omni asks for this function by name: tensors (N, 3, H, W) to PIL images."""
    from PIL import Image

    def to_images(images: torch.Tensor) -> list[Image.Image]:
        pixels = images.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(one) for one in pixels]

    return to_images
