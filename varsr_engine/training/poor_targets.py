"""Deliberately poor pictures: targets of label 1, from which guidance learns what to move away from."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from varsr_engine.training.blur_kernels import blur_kernel, filter_image
from varsr_engine.training.degradation_params import BlurKind, ResizeMode
from varsr_engine.training.picture_faults import (
    add_gaussian_noise,
    add_poisson_noise,
    checked_picture,
    jpeg,
    resize,
)

FAULTS = ("blur", "smooth", "noise", "jpeg")  # in the order in which two of them are applied
TWO_PROBABILITY = 0.3


def poor_target(hr: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """(3, H, W) in [0, 1] → the same size, plainly worse: blurred, over-smoothed, noisy or crushed by JPEG.

    One fault, or with probability 0.3 two of different kinds. Deterministic for a given state of rng.
    """
    image = checked_picture("poor_target", hr)
    count = 2 if rng.random() < TWO_PROBABILITY else 1
    chosen = set(rng.choice(len(FAULTS), size=count, replace=False).tolist())
    for index, apply in enumerate((_blur, _smooth, _noise, _jpeg)):
        if index in chosen:
            image = apply(image, rng).clamp(0, 1)
    return image


def _blur(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    sigma_x, sigma_y = rng.uniform(1.2, 3.5, size=2)
    kind: BlurKind = "iso" if rng.random() < 0.6 else "aniso"
    angle = float(rng.uniform(-math.pi, math.pi))
    return filter_image(image, blur_kernel(kind, 21, float(sigma_x), float(sigma_y), angle, 1.0))


def _smooth(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Texture lost and edges kept (guided filter), or everything lost that a smaller picture cannot hold."""
    if rng.random() < 0.5:
        return guided_filter(image, int(rng.integers(2, 7)), float(rng.uniform(0.05, 0.2)) ** 2)
    height, width = image.shape[1:]
    factor = float(rng.uniform(2, 5))
    small = resize(image, (max(1, round(height / factor)), max(1, round(width / factor))), "antialiased")
    modes: tuple[ResizeMode, ...] = ("bilinear", "bicubic")
    return resize(small, (height, width), modes[int(rng.integers(2))])


def _noise(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    gray = bool(rng.random() < 0.4)
    if rng.random() < 0.5:
        return add_gaussian_noise(image, float(rng.uniform(8, 30)), gray, rng)
    return add_poisson_noise(image, float(rng.uniform(1, 3)), gray, rng)


def _jpeg(image: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    return jpeg(image, int(rng.integers(5, 31)))


def guided_filter(image: torch.Tensor, radius: int, eps: float) -> torch.Tensor:
    """mean(a)·x + mean(b) with a = var/(var + eps), b = (1 - a)·mean in windows of 2·radius + 1, a channel at a time.

    Smooths what varies by less than √eps and keeps stronger edges. Source: "Guided Image Filtering" (He, 2010).
    """
    mean = _box_mean(image, radius)
    variance = (_box_mean(image * image, radius) - mean * mean).clamp_(min=0)
    a = variance / (variance + eps)
    return _box_mean(a, radius) * image + _box_mean((1 - a) * mean, radius)


def _box_mean(image: torch.Tensor, radius: int) -> torch.Tensor:
    side = 2 * radius + 1
    rows = F.avg_pool2d(image, (side, 1), 1, (radius, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, side), 1, (0, radius), count_include_pad=False)
