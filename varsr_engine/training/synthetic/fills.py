"""What shapes are filled with: plain colours, gradients, and windows of the textures, in colours of the picture."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from varsr_engine.training.synthetic.colors import Color, to_bytes, to_ink
from varsr_engine.training.synthetic.shapes import rotation, scale_free
from varsr_engine.training.textures import TILE, Group, group_size, texture

Fill = Callable[[int, int], Image.Image]  # width, height → RGB

_BILINEAR = Image.Resampling.BILINEAR
_BICUBIC = Image.Resampling.BICUBIC


class Fills:
    """The colours of a picture and fills in them, drawn at random. roughness: how many of the fills are textured."""

    def __init__(self, rng: np.random.Generator, colors: list[Color], roughness: float) -> None:
        self.rng = rng
        self.colors = colors
        self.roughness = roughness

    def color(self) -> Color:
        """A colour of the picture's palette, a little varied."""
        rng = self.rng
        base = self.colors[min(int(rng.exponential(0.3) * len(self.colors)), len(self.colors) - 1)]
        return np.clip(base * np.exp(rng.normal(0, 0.3)) + rng.normal(0, 0.025, 3), 0.01, 1)

    def any_fill(self, color: Color | None = None) -> Fill:
        rng = self.rng
        if rng.random() > 0.35 + 0.6 * self.roughness:
            if rng.random() < 0.5:  # plain at first sight
                return self.textured("noise", color, contrast=float(rng.uniform(0.03, 0.13)))
            return self.smooth(float(rng.choice((0.0, 0.05, 0.25))), color)
        groups: tuple[Group, ...] = ("noise", "carpet", "pattern", "print")
        return self.textured(groups[rng.choice(4, p=(0.56, 0.24, 0.16, 0.04))], color)

    def smooth(self, contrast: float, color: Color | None = None) -> Fill:
        """One colour from darker to brighter by `contrast`, along a line or around a point."""
        rng = self.rng
        base = self.color() if color is None else color
        if contrast == 0:
            return lambda w, h: Image.new("RGB", (w, h), to_ink(base))
        other = base * (1 + contrast * rng.choice((-1, 1))) + rng.normal(0, 0.15, 3) * contrast
        if rng.random() < 0.25:
            other = 0.5 * (other + self.color())
        angle, radial = rng.uniform(0, 6.3), rng.random() < 0.3
        focus = rng.uniform(-0.5, 0.5, 2)

        def fill(width: int, height: int) -> Image.Image:
            y, x = np.mgrid[-1:1:9j, -1:1:9j]
            t = 0.5 + 0.4 * (np.cos(angle) * x + np.sin(angle) * y)
            if radial:
                t = np.hypot(x - focus[0], y - focus[1]) / 1.6
            colors = base + np.clip(t, 0, 1)[..., None] * (other - base)
            return Image.fromarray(to_bytes(colors)).resize((width, height), _BICUBIC)

        return fill

    def textured(
        self, group: Group, color: Color | None = None, *, turn: float | None = None, contrast: float | None = None
    ) -> Fill:
        """A window of a texture of the bank, turned, stretched and seen at an angle, in shades of a colour."""
        rng = self.rng
        source = texture(group, int(rng.integers(group_size(group))))
        base = self.color() if color is None else color
        low, high = (0.3, 1.3) if group in ("noise", "carpet") else (0.2, 0.9)
        zoom = scale_free(rng, low, high)
        if turn is None:
            turn = 0.0 if group == "pattern" and rng.random() < 0.3 else rng.uniform(0, 6.3)
        stretch = np.exp(rng.normal(0, 0.2))
        perspective = rng.normal(0, 0.12, (4, 2)) if rng.random() < 0.4 else np.zeros((4, 2))
        start = rng.random(2)
        table = self._shades(base, group, contrast)

        def fill(width: int, height: int) -> Image.Image:
            corners = np.array([(0, 0), (0, height), (width, height), (width, 0)]) - (width / 2, height / 2)
            corners = (corners + perspective * (width, height)) * (zoom * stretch, zoom / stretch) @ rotation(turn)
            low, high = corners.min(0), corners.max(0)
            span = float((high - low).max())
            if span > 2 * TILE - 4:
                corners *= (2 * TILE - 4) / span
                low, high = corners.min(0), corners.max(0)
            free = 2 * TILE - 2 - (high - low)
            corners = corners - low + 1 + start * free
            quad = tuple(corners.ravel().tolist())
            gray = source.transform((width, height), Image.Transform.QUAD, quad, _BILINEAR)
            return Image.merge("RGB", (gray,) * 3).point(table)

        return fill

    def _shades(self, base: Color, group: Group, contrast: float | None) -> list[int]:
        """Gray level → colour: three tables of 256 entries."""
        rng = self.rng
        t = np.linspace(-1.8, 1.8, 256)[:, None]
        if group == "print" or (group == "pattern" and rng.random() < 0.5):
            other = self.color()
            colors = base + (other - base) * np.clip(0.5 + 0.5 * t / rng.uniform(0.6, 1.5), 0, 1)
            return to_bytes(colors).T.ravel().tolist()
        if contrast is None:
            if rng.random() < 0.12:  # blots of two colours with sharp edges
                t = np.tanh(t * rng.uniform(3, 12))
            contrast = float(np.exp(rng.normal(np.log(0.35 if group == "carpet" else 0.24), 0.7)))
        drift = rng.normal(0, 0.3, 3) * contrast * 0.4
        colors = base * np.exp(np.clip(contrast * t, -2.5, 0.9)) + drift * t
        return to_bytes(colors).T.ravel().tolist()
