"""8-bit pictures, and the luminance that super-resolution papers measure on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # (H, W, 3)
Plane = NDArray[np.float64]  # (H, W)

_Y_OF_RGB = np.array([65.481, 128.553, 24.966]) / 255
_Y_OFFSET = 16


def luminance(rgb: Pixels) -> Plane:
    """(H, W, 3) uint8 → Y = 16 + (65.481 R + 128.553 G + 24.966 B) / 255 of BT.601, in [16, 235], unrounded.

    What MATLAB's rgb2ycbcr and pyiqa's test_y_channel (color_space="ycbcr") compute.
    """
    return _Y_OFFSET + rgb.astype(np.float64) @ _Y_OF_RGB


def whole_levels(rgb: Pixels) -> Plane:
    """`luminance` rounded to whole levels, as MATLAB's of uint8 pictures is; pyiqa's SSIM, MS-SSIM and NIQE take it."""
    return np.round(luminance(rgb))


def check_pixels(metric: str, name: str, image: Pixels, least_side: int = 1) -> None:
    """Raises TypeError or ValueError unless `image` is (H, W, 3) uint8 with sides of at least `least_side` pixels."""
    if image.dtype != np.uint8:
        raise TypeError(f"{metric}: {name} must be uint8, got {image.dtype}")
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < least_side:
        raise ValueError(
            f"{metric}: {name} must be (H, W, 3) of at least {least_side}×{least_side} pixels, got {image.shape}"
        )


def check_pair(metric: str, picture: Pixels, truth: Pixels, least_side: int = 1) -> None:
    """`check_pixels` of both, which must also have one shape."""
    check_pixels(metric, "picture", picture, least_side)
    check_pixels(metric, "truth", truth, least_side)
    if picture.shape != truth.shape:
        raise ValueError(f"{metric}: picture must have the shape of the truth {truth.shape}, got {picture.shape}")
