"""`RealESRGANer` on this engine: programs written for Real-ESRGAN's class change one import.

    from varsr_engine.integrations.realesrgan import RealESRGANer

    upsampler = RealESRGANer(scale=4)
    output, mode = upsampler.enhance(cv2.imread("photo.png", cv2.IMREAD_UNCHANGED), outscale=2)

Needs neither Real-ESRGAN nor OpenCV.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from varsr_engine.engine.engine import Engine
from varsr_engine.engine.params import UpscaleParams
from varsr_engine.errors import InvalidImageError, InvalidParamsError
from varsr_engine.imaging.picture import FloatArray

ImageMode = Literal["L", "RGB", "RGBA"]


class RealESRGANer:
    """Upscales arrays as OpenCV reads them: (H, W), (H, W, 3) BGR or (H, W, 4) BGRA, uint8 or uint16.

    scale: of the output where `enhance` is given none. model_path: a VARSR model, as for `Engine.from_pretrained`.
    half: compute in fp16 (GPU only) or fp32; None leaves it to the engine. device, gpu_id: as there; a gpu_id is a GPU.
    tile, tile_pad, pre_pad are taken and not used: the engine cuts large images into tiles of the model's size.
    engine: one that is loaded already, in place of model_path, half, device and gpu_id. params: more of UpscaleParams.
    Raises InvalidParamsError for dni_weight and model, which belong to Real-ESRGAN's networks. Thread-safe.
    """

    def __init__(
        self,
        scale: float = 4,
        model_path: str | os.PathLike[str] | None = None,
        dni_weight: object = None,
        model: object = None,
        tile: int = 0,
        tile_pad: int = 10,
        pre_pad: int = 10,
        half: bool | None = None,
        device: object = None,
        gpu_id: int | None = None,
        *,
        engine: Engine | None = None,
        **params: Any,
    ) -> None:
        for name, value in (("model", model), ("dni_weight", dni_weight)):
            if value is not None:
                raise InvalidParamsError(
                    f"{name} must be None: it is for Real-ESRGAN's networks, and this adapter runs VARSR models; name "
                    "one with model_path"
                )
        if engine is None:
            place = f"cuda:{gpu_id}" if gpu_id is not None else None if device is None else str(device)
            dtype = None if half is None else "fp16" if half else "fp32"
            engine = Engine.from_pretrained(model_path, device=place, dtype=dtype)
        self.engine, self.scale = engine, scale
        self.params = UpscaleParams(scale=scale).replace(**params)

    def enhance(
        self, img: NDArray[Any], outscale: float | None = None, alpha_upsampler: str = "bicubic"
    ) -> tuple[NDArray[Any], ImageMode]:
        """The upscaled array, of img's layout and dtype, and its mode: L, RGB or RGBA.

        outscale: output size over input size; sides are rounded down. alpha_upsampler: "realesrgan" has the network
        upscale alpha too, which doubles the time; any other name resizes it, which keeps flat alpha flat (not the
        default of the original). Raises InvalidImageError, InvalidParamsError and their kinds.
        """
        if not isinstance(img, np.ndarray) or img.dtype not in (np.uint8, np.uint16) or img.ndim not in (2, 3):
            got = f"{img.dtype} {img.shape}" if isinstance(img, np.ndarray) else type(img).__name__
            raise InvalidImageError(f"img must be a uint8 or uint16 array (H, W), (H, W, 3) or (H, W, 4), got {got}")
        height, width = img.shape[:2]
        scale = self.scale if outscale is None else outscale
        params = self.params.replace(scale=scale)  # which checks it
        size = max(1, int(width * scale)), max(1, int(height * scale))
        params = params.replace(scale=None, target_size=size)
        picture = self.engine.upscale(img if img.ndim == 2 else _swapped(img), params).picture
        if picture.gray:
            return _quantized(picture.rgb[..., 0], img.dtype).reshape(size[::-1]), "L"
        if picture.alpha is None:
            return _quantized(_swapped(picture.rgb), img.dtype), "RGB"
        alpha = picture.alpha
        if alpha_upsampler == "realesrgan":
            alpha = self.engine.upscale(np.ascontiguousarray(img[..., 3]), params).picture.rgb[..., 0]
        return _quantized(np.dstack([_swapped(picture.rgb), alpha]), img.dtype), "RGBA"


def _swapped(pixels: NDArray[Any]) -> NDArray[Any]:
    """BGR(A) from RGB(A), and back."""
    order = [2, 1, 0, *range(3, pixels.shape[2])] if pixels.shape[2] >= 3 else [0]
    return np.ascontiguousarray(pixels[..., order])


def _quantized(samples: FloatArray, dtype: np.dtype[Any]) -> NDArray[Any]:
    """[0, 1] to the whole range of an unsigned dtype, rounded."""
    return np.rint(np.clip(samples, 0, 1) * np.iinfo(dtype).max).astype(dtype)
