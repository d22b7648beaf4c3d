"""Made-up pictures with edges, texture and smooth places, quickly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from varsr_engine.evaluation.luminance import Pixels


def scene(height: int = 64, width: int = 64, seed: int = 0) -> Pixels:
    """Rectangles of many sizes and colours over each other, with a little texture."""
    rng = np.random.default_rng(seed)
    canvas = np.full((height, width, 3), 128.0)
    for size in sorted(rng.pareto(1.2, 150) * 6 + 4, reverse=True):
        h, w = (max(3, int(size * factor)) for factor in rng.uniform(0.5, 1.5, 2))
        top, left = int(rng.integers(-h // 2, height)), int(rng.integers(-w // 2, width))
        area = canvas[max(0, top) : max(0, top + h), max(0, left) : max(0, left + w)]
        area[:] = rng.uniform(20, 235, 3) + rng.normal(0, rng.uniform(1, 12), (*area.shape[:2], 1))
    return np.clip(canvas, 0, 255).astype(np.uint8)


def blurred(image: Pixels, sigma: float) -> Pixels:
    return np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


def noisy(image: Pixels, sigma: float, seed: int = 1) -> Pixels:
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def gray(value: int, side: int = 32) -> Pixels:
    return np.full((side, side, 3), value, dtype=np.uint8)


def save(pixels: Pixels, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path
