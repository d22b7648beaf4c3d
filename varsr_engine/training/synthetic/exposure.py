"""From the painted canvas to the picture: uneven light, exposure, and the faint marks of real surfaces."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from varsr_engine.training.synthetic.colors import to_bytes
from varsr_engine.training.synthetic.shapes import scale_free
from varsr_engine.training.textures import SPREAD, TILE, texture

_BILINEAR = Image.Resampling.BILINEAR
_BICUBIC = Image.Resampling.BICUBIC


def develop(image: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Uneven light, exposure, gamma, colour temperature and contrast, in float, then 8 bits."""
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255)
    y, x = np.mgrid[-1:1:12j, -1:1:12j]
    slope = rng.normal(0, 0.12, 2)
    light = np.exp(slope[0] * x + slope[1] * y - abs(rng.normal(0, 0.08)) * (x**2 + y**2))
    field = Image.fromarray(light.astype(np.float32)).resize(image.size, _BICUBIC)
    warmth, tint = rng.normal(0, 0.06), rng.normal(0, 0.02)
    gains = np.exp([warmth, tint, -warmth]).astype(np.float32)
    pixels *= (np.asarray(field) * _patina(image.width, rng))[..., None] * gains
    low, high = np.percentile(pixels[::8, ::8], (0.5, 99.5))
    target_low, target_high = rng.uniform(0, 0.08), rng.uniform(0.75, 1.06)
    mix = rng.uniform(0.3, 1)  # how far the exposure is stretched to the full range
    gain = mix * (target_high - target_low) / max(float(high - low), 0.15) + 1 - mix
    offset = mix * (target_low - gain * float(low))
    pixels = np.clip(pixels * np.float32(gain) + np.float32(offset), 0, 1)
    mean = np.clip(float(pixels[::4, ::4].mean()), 0.05, 0.9)
    gamma = np.clip(np.log(rng.uniform(0.28, 0.6)) / np.log(mean), 0.55, 1.5)
    curve = np.linspace(0, 1, 4096) ** gamma
    bend = rng.uniform(-0.15, 0.35)
    curve = to_bytes(curve + bend * (curve * curve * (3 - 2 * curve) - curve))
    return curve[(pixels * 4095 + 0.5).astype(np.uint16)]


def _patina(side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Faint irregularities that every real surface has, stronger in some places: factors around 1."""
    source = texture("noise", int(rng.integers(0, 3)))
    zoom = scale_free(rng, 0.6, 1.6)
    reach = min(side * zoom, TILE - 2.0)
    left, top = rng.uniform(1, TILE, 2)
    window = (left, top, left + reach, top + reach)
    gray = np.asarray(source.resize((side, side), _BICUBIC, window), dtype=np.float32)
    places = np.exp(rng.normal(-3.5, 0.8, (5, 5))).astype(np.float32)
    strength = np.asarray(Image.fromarray(places).resize((side, side), _BILINEAR))
    return 1 + (gray - 127.5) / SPREAD * np.minimum(strength, 0.12)
