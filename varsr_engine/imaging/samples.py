"""Samples of arrays: integers ↔ float32 in [0, 1].

Back to integers is floor(x * max + 0.5), clamped: what was read from 8 or 16 bits comes back exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from varsr_engine.errors import InvalidImageError
from varsr_engine.imaging.picture import FloatArray

_TOLERANCE = 1e-3  # float images may leave [0, 1] by rounding, not by another convention


def to_unit(samples: NDArray[Any], name: str) -> FloatArray:
    """uint8 / 255, uint16 / 65535, or float that is in [0, 1] already (rounding beyond it is clamped); any shape.

    Raises InvalidImageError for other dtypes, NaN, infinity, and floats that leave [0, 1] by more than 1e-3.
    """
    kind, itemsize = samples.dtype.kind, samples.dtype.itemsize
    if kind == "u" and itemsize <= 2:
        return samples.astype(np.float32) / np.float32(255 if itemsize == 1 else 65535)
    if kind != "f":
        raise InvalidImageError(f"{name} must be uint8, uint16 or float, got {samples.dtype}")
    if not np.isfinite(samples).all():
        raise InvalidImageError(f"{name} must be finite, found NaN or infinity")
    low, high = float(samples.min()), float(samples.max())
    if low < -_TOLERANCE or high > 1 + _TOLERANCE:
        raise InvalidImageError(
            f"{name}: float values must be in [0, 1], found [{low:g}, {high:g}]; rescale them, or use 8-bit samples"
        )
    return np.clip(samples.astype(np.float32), 0, 1)


def to_uint8(samples: FloatArray) -> NDArray[np.uint8]:
    """[0, 1] → 0 … 255; any shape."""
    return np.clip(samples * 255 + 0.5, 0, 255).astype(np.uint8)


def to_uint16(samples: FloatArray) -> NDArray[np.uint16]:
    """[0, 1] → 0 … 65535; any shape."""
    return np.clip(samples * 65535 + 0.5, 0, 65535).astype(np.uint16)


def gray_to_rgb(gray: FloatArray) -> FloatArray:
    """(H, W) → (H, W, 3), three equal channels."""
    return np.repeat(gray[..., None], 3, axis=2)
