"""numpy arrays and torch tensors → Picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from varsr_engine.errors import InvalidImageError
from varsr_engine.imaging.picture import Picture, ReadLimits
from varsr_engine.imaging.samples import gray_to_rgb, to_unit

if TYPE_CHECKING:
    import torch


def picture_from_array(array: NDArray[Any], limits: ReadLimits, name: str = "array") -> Picture:
    """(H, W) or (H, W, C), C in {1, 3, 4}; uint8, uint16, or float in [0, 1].

    One channel is gray, the fourth is alpha. uint16 and float count as 16 bits deep.
    Raises InvalidImageError, or ImageTooLargeError by `limits`.
    """
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InvalidImageError(f"{name} must be (H, W) or (H, W, C) with C of 1, 3 or 4, got {array.shape}")
    height, width = array.shape[:2]
    if height == 0 or width == 0:
        raise InvalidImageError(f"{name} must have H, W > 0, got {array.shape}")
    limits.check_size(width, height, name)
    samples = to_unit(array, name)
    depth = 8 if array.dtype == np.uint8 else 16
    channels = 1 if array.ndim == 2 else array.shape[2]
    if channels == 1:
        return Picture(gray_to_rgb(samples.reshape(height, width)), bit_depth=depth, gray=True)
    alpha = np.ascontiguousarray(samples[..., 3]) if channels == 4 else None
    return Picture(np.ascontiguousarray(samples[..., :3]), alpha, bit_depth=depth)


def picture_from_tensor(tensor: torch.Tensor, limits: ReadLimits) -> Picture:
    """[3, H, W] or [1, 3, H, W]; uint8, or floating point in [0, 1]; any device. Errors as above."""
    shape = tuple(tensor.shape)
    if len(shape) not in (3, 4) or shape[-3] != 3 or (len(shape) == 4 and shape[0] != 1):
        raise InvalidImageError(f"tensor must be [3, H, W] or [1, 3, H, W], got {list(shape)}")
    tensor = tensor.detach().reshape(shape[-3:]).permute(1, 2, 0).cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # numpy has no bfloat16
    elif str(tensor.dtype) != "torch.uint8":
        raise InvalidImageError(f"tensor must be uint8 or floating point, got {tensor.dtype}")
    return picture_from_array(tensor.numpy(), limits, "tensor")
