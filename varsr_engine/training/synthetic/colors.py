"""Colours that go together in a picture, and their 8-bit forms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Color = NDArray[np.float64]  # RGB in [0, 1]

_HUES = (0.6, 0.7, 0.85, 1.2, 1.9, 3.7, 4.1)  # radians: skin, wood, earth, dry grass, leaves, water and sky


def related_colors(rng: np.random.Generator) -> list[Color]:
    """A few related colours: one or two hues, their neighbours, grays, and at times a vivid one."""
    hues = [_HUES[rng.integers(0, len(_HUES))] + rng.normal(0, 0.2) for _ in range(rng.integers(1, 4))]
    if rng.random() < 0.2:
        hues[0] = rng.uniform(0, 2 * np.pi)
    vividness = rng.beta(1.2, 4.5) * 0.4 + 0.012
    middle, spread = rng.uniform(0.25, 0.6), rng.uniform(0.12, 0.3)
    colors = []
    for i in range(int(rng.integers(4, 9))):
        luma = np.clip(rng.normal(middle, spread), 0.03, 0.97)
        chroma = vividness * rng.gamma(2.0, 0.5)
        if i > 2 and rng.random() < 0.1:
            chroma = rng.uniform(0.2, 0.45)
        colors.append(_from_hue(float(luma), float(chroma), hues[i % len(hues)] + rng.normal(0, 0.15)))
    return colors


def _from_hue(luma: float, chroma: float, hue: float) -> Color:
    """Y and a direction in the (R-Y, B-Y) plane → RGB; the chroma is lowered until it fits the cube."""
    red, blue = np.cos(hue), -np.sin(hue)
    shift = np.array([1.402 * red, -0.714 * red - 0.344 * blue, 1.772 * blue]) / 1.4
    room = np.min(np.where(shift > 0, (1 - luma) / np.maximum(shift, 1e-6), luma / np.maximum(-shift, 1e-6)))
    return luma + shift * min(chroma, 0.95 * float(room))


def to_bytes(colors: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(np.rint(255 * colors), 0, 255).astype(np.uint8)


def to_ink(color: Color) -> tuple[int, int, int]:
    r, g, b = to_bytes(color)
    return int(r), int(g), int(b)
