"""What degradations are made of: resizing, noise and JPEG on (3, H, W) tensors in [0, 1] on the CPU."""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from varsr_engine.training.degradation_params import ResizeMode

LUMA = (0.299, 0.587, 0.114)
PHOTONS = 255.0  # of a white pixel at Poisson scale 1


def resize(image: torch.Tensor, size: tuple[int, int], mode: ResizeMode) -> torch.Tensor:
    """(C, H, W) → (C, *size); the same tensor if it has that size. Only `antialiased` (bicubic) does not alias."""
    if tuple(image.shape[1:]) == tuple(size):
        return image
    if mode == "area":
        return F.interpolate(image[None], size, mode="area")[0]
    antialias = mode == "antialiased"
    mode_name = "bicubic" if antialias else mode
    return F.interpolate(image[None], size, mode=mode_name, align_corners=False, antialias=antialias)[0]


def add_gaussian_noise(image: torch.Tensor, sigma: float, gray: bool, rng: np.random.Generator) -> torch.Tensor:
    """image + N(0, (sigma/255)²), clamped to [0, 1]; gray: one noise for all channels."""
    shape = (1 if gray else image.shape[0], image.shape[1], image.shape[2])
    noise = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    return torch.add(image, noise, alpha=sigma / 255).clamp_(0, 1)


def add_poisson_noise(image: torch.Tensor, scale: float, gray: bool, rng: np.random.Generator) -> torch.Tensor:
    """image + scale·(Poisson(255 x)/255 - x), clamped to [0, 1]; x is the image or, for gray, its luminance.

    The paper's code counts the picture's distinct values where this has 255, the number that nearly all have.
    """
    x = luminance(image)[None] if gray else image
    expected = x * PHOTONS
    counts = torch.from_numpy(rng.poisson(expected.numpy()).astype(np.float32))
    return torch.add(image, counts - expected, alpha=scale / PHOTONS).clamp_(0, 1)


def luminance(image: torch.Tensor) -> torch.Tensor:
    """(3, H, W) → (H, W): 0.299 R + 0.587 G + 0.114 B."""
    return image[0] * LUMA[0] + image[1] * LUMA[1] + image[2] * LUMA[2]


def jpeg(image: torch.Tensor, quality: int) -> torch.Tensor:
    """(3, H, W) through Pillow's JPEG codec (chroma at half size) and back."""
    pixels = image.mul(255).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    decoded = torch.from_numpy(np.array(Image.open(buffer)))
    return decoded.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def checked_picture(op: str, image: torch.Tensor) -> torch.Tensor:
    """The picture in float32, clamped; it must be (3, H, W), floating point, on the CPU, in [0, 1] to a thousandth."""
    if not image.is_floating_point() or image.device.type != "cpu":
        raise TypeError(f"{op}: hr must be floating point on the CPU, got {image.dtype} on {image.device}")
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"{op}: hr must be (3, H, W), not empty, got {tuple(image.shape)}")
    low, high = (float(v) for v in torch.aminmax(image))
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(f"{op}: hr must be in [0, 1], got {low:.4g} to {high:.4g}")
    return image.detach().to(torch.float32).clamp(0, 1)
