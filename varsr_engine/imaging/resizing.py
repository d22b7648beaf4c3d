"""Resizing as the published pipeline does it (Pillow), and the tensor that the network takes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from varsr_engine.imaging.picture import FloatArray
from varsr_engine.imaging.samples import to_uint8

if TYPE_CHECKING:
    import torch


def resize_rgb(
    rgb: FloatArray,
    size: tuple[int, int],
    eight_bit: bool = False,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> FloatArray:
    """Resize (H, W, 3) float32 in [0, 1] to size = (width, height); the same array if it has that size.

    eight_bit: resize the 8-bit image, bit for bit as `Image.resize` does, as the published pipeline for 8-bit
    sources. Otherwise each channel in float, clamped to [0, 1].
    """
    if (rgb.shape[1], rgb.shape[0]) == size:
        return rgb
    if eight_bit:
        resized = Image.fromarray(to_uint8(rgb)).resize(size, resample)
        return np.asarray(resized, dtype=np.float32) / np.float32(255)
    return np.stack([_resize_plane(rgb[..., c], size, resample) for c in range(3)], axis=-1)


class ResizedView:
    """A picture (H, W, 3) resized in float to size = (width, height) as by `resize_rgb`, computed part by part.

    Parts are those of the whole to the rounding of Pillow's float32 coordinates. (In 8 bits they would not be: Pillow
    clips between its two passes, whose order depends on the size of the part.)
    """

    def __init__(self, rgb: FloatArray, size: tuple[int, int]) -> None:
        self.size = size
        self._rgb = rgb
        self._same = (rgb.shape[1], rgb.shape[0]) == size

    def part(self, left: int, top: int, right: int, bottom: int) -> FloatArray:
        """(bottom - top, right - left, 3) float32 in [0, 1]: these pixels of the resized picture."""
        if self._same:
            return self._rgb[top:bottom, left:right]
        height, width = self._rgb.shape[:2]
        x0, x1, columns = _needed(left, right, width / self.size[0], width)
        y0, y1, rows = _needed(top, bottom, height / self.size[1], height)
        source = self._rgb[rows, columns]
        box = (x0 - columns.start, y0 - rows.start, x1 - columns.start, y1 - rows.start)
        size = right - left, bottom - top
        planes = (Image.fromarray(np.ascontiguousarray(source[..., c])) for c in range(3))
        parts = [np.asarray(plane.resize(size, Image.Resampling.BICUBIC, box=box)) for plane in planes]
        return np.clip(np.stack(parts, axis=-1), 0, 1)

    def rows(self, top: int, bottom: int) -> FloatArray:
        return self.part(0, top, self.size[0], bottom)


def _needed(first: int, last: int, ratio: float, length: int) -> tuple[float, float, slice]:
    """Of pixels first to last along an axis: where they lie in the source, and the source's pixels that they see."""
    reach = math.ceil(2 * max(ratio, 1.0)) + 1  # of the bicubic kernel
    low, high = first * ratio, min(last * ratio, length)
    return low, high, slice(max(0, math.floor(low) - reach), min(length, math.ceil(high) + reach))


def resize_alpha(alpha: FloatArray, size: tuple[int, int]) -> FloatArray:
    """Resize (H, W) float32 in [0, 1] to size = (width, height) with Lanczos, clamped to [0, 1]."""
    if (alpha.shape[1], alpha.shape[0]) == size:
        return alpha
    return _resize_plane(alpha, size, Image.Resampling.LANCZOS)


def _resize_plane(plane: FloatArray, size: tuple[int, int], resample: Image.Resampling) -> FloatArray:
    resized = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32)).resize(size, resample)
    return np.clip(np.asarray(resized, dtype=np.float32), 0, 1)


def to_network_input(rgb: FloatArray) -> torch.Tensor:
    """(H, W, 3) in [0, 1] → [1, 3, H, W] in [-1, 1], float32, contiguous, on the CPU."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)[None])) * 2 - 1
