"""Low-resolution inputs made from good pictures, and poor pictures to learn what to avoid from.

`degrade` is the second-order pipeline of Real-ESRGAN (arXiv 2107.10833, section 3): a picture is blurred, resized, made
noisy and compressed twice over, as pictures are that were sent around. Every draw comes from the generator given.
"""

from __future__ import annotations

import numpy as np
import torch

from varsr_engine.training.blur_kernels import draw_blur_kernel, draw_final_sinc, filter_image
from varsr_engine.training.degradation_params import DegradationParams, Preset, ResizeMode, Stage
from varsr_engine.training.picture_faults import add_gaussian_noise, add_poisson_noise, checked_picture, jpeg, resize
from varsr_engine.training.poor_targets import poor_target

__all__ = ["DegradationParams", "Preset", "Stage", "degrade", "poor_target"]


def degrade(
    hr: torch.Tensor,
    rng: np.random.Generator,
    preset: Preset | DegradationParams = "second_order",
    scale: int = 4,
) -> torch.Tensor:
    """(3, H, W) in [0, 1] → (3, H // scale, W // scale) in [0, 1], float32, whole multiples of 1/255.

    Deterministic for a given state of rng, which it advances. hr is not changed.
    """
    image = checked_picture("degrade", hr)
    height, width = image.shape[1:]
    if not 1 <= scale <= min(height, width):
        raise ValueError(f"degrade: scale must be from 1 to the shorter side of {height}×{width}, got {scale}")
    target = (height // scale, width // scale)
    params = preset if isinstance(preset, DegradationParams) else DegradationParams.preset(preset)
    *first, last = params.stages
    for stage in first:
        image = _blur_resize_noise(image, stage, (image.shape[1], image.shape[2]), rng)
        image = jpeg(image, _draw_quality(stage, rng))
    image = _blur_resize_noise(image, last, target, rng)
    return _finish(image, params, last, target, rng)


def _finish(
    image: torch.Tensor, params: DegradationParams, last: Stage, target: tuple[int, int], rng: np.random.Generator
) -> torch.Tensor:
    """The last resize with the sinc filter, and the last JPEG, in either order."""
    quality, mode = _draw_quality(last, rng), _draw_mode(last, rng)
    jpeg_first = rng.random() < params.jpeg_first_probability
    if jpeg_first:
        image = jpeg(image, quality)
    image = resize(image, target, mode)
    if rng.random() < params.final_sinc_probability:
        image = filter_image(image, draw_final_sinc(params.final_sinc_sizes, rng))
    if not jpeg_first:
        image = jpeg(image, quality)
    return image.mul(255).round_().clamp_(0, 255).div_(255)


def _blur_resize_noise(
    image: torch.Tensor, stage: Stage, size: tuple[int, int], rng: np.random.Generator
) -> torch.Tensor:
    """Blur and noise of one stage around its resize, whose drawn factor is relative to `size`."""
    if rng.random() < stage.blur_probability:
        image = filter_image(image, draw_blur_kernel(stage, rng))
    factor = _draw_factor(stage, rng)
    image = resize(image, (max(1, round(size[0] * factor)), max(1, round(size[1] * factor))), _draw_mode(stage, rng))
    image = image.clamp(0, 1)
    gray = bool(rng.random() < stage.gray_probability)
    if rng.random() < stage.gaussian_probability:
        return add_gaussian_noise(image, float(rng.uniform(*stage.gaussian_sigma)), gray, rng)
    return add_poisson_noise(image, float(rng.uniform(*stage.poisson_scale)), gray, rng)


def _draw_factor(stage: Stage, rng: np.random.Generator) -> float:
    low, high = stage.resize_range
    which = int(rng.choice(3, p=stage.resize_probabilities))
    if which == 2:
        return 1.0
    return float(rng.uniform(1, high) if which == 0 else rng.uniform(low, 1))


def _draw_mode(stage: Stage, rng: np.random.Generator) -> ResizeMode:
    return stage.resize_modes[int(rng.integers(len(stage.resize_modes)))]


def _draw_quality(stage: Stage, rng: np.random.Generator) -> int:
    low, high = stage.jpeg_quality
    return int(rng.integers(low, high + 1))
