"""The canvas: how shapes, their shadows and their shading are put on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from varsr_engine.training.synthetic.colors import Color
from varsr_engine.training.synthetic.fills import Fill
from varsr_engine.training.synthetic.shapes import Points

Box = tuple[int, int, int, int]

_BILINEAR = Image.Resampling.BILINEAR
_BICUBIC = Image.Resampling.BICUBIC


class Canvas:
    """A square picture that is painted from the back to the front. Lengths are in its pixels."""

    def __init__(self, side: int, rng: np.random.Generator, light: float) -> None:
        self.rng = rng
        self.side = side
        self.light = light  # the direction it comes from
        self.image = Image.new("RGB", (side, side))

    def shape(
        self,
        outline: Points,
        fill: Fill,
        *,
        shadow: float = 0.0,
        shading: float = 0.0,
        soft: float = 0.0,
        opacity: float = 1.0,
    ) -> None:
        """Paint a polygon. shadow: how far it drops one; shading: how round it looks; soft: blur of its edge."""
        margin = 3 * soft + 1
        box = self.box(outline.min(0) - margin, outline.max(0) + margin)
        if box is None:
            return
        width, height = box[2] - box[0], box[3] - box[1]
        mask = Image.new("L", (2 * width, 2 * height))
        points = 2 * (outline - box[:2])
        ImageDraw.Draw(mask).polygon(points.ravel().tolist(), fill=int(255 * opacity))
        mask = mask.reduce(2)
        if soft:
            mask = mask.filter(ImageFilter.GaussianBlur(float(soft)))
        if shadow:
            self._drop_shadow(mask, box, shadow)
        pixels = fill(width, height)
        if shading:
            pixels = self._shaded(pixels, shading)
        self.image.paste(pixels, box[:2], mask)

    @contextlib.contextmanager
    def fine(self, box: Box) -> Iterator[tuple[ImageDraw.ImageDraw, Points]]:
        """Draw on the pixels of `box` with twice the resolution; also yields the box's origin."""
        patch = self.image.crop(box)
        patch = patch.resize((2 * patch.width, 2 * patch.height), Image.Resampling.NEAREST)
        yield ImageDraw.Draw(patch), np.array(box[:2], dtype=np.float64)
        self.image.paste(patch.reduce(2), box[:2])

    def box(self, low: Points, high: Points) -> Box | None:
        """The pixels between two corners that lie on the canvas."""
        left, top = (max(int(v), 0) for v in np.floor(low))
        right, bottom = (min(int(v), self.side) for v in np.ceil(high))
        return (left, top, right, bottom) if right > left and bottom > top else None

    def near(self, place: Points, contrast: float) -> Color:
        """The colour of the canvas at a place, darker or brighter."""
        x, y = np.clip(place, 0, self.side - 1).astype(int)
        local = np.array(self.image.getpixel((int(x), int(y))), dtype=np.float64) / 255
        return np.clip(local * np.exp(contrast * self.rng.normal()) + self.rng.normal(0, 0.02, 3), 0.01, 1)

    def defocus(self, radius: float) -> None:
        """Blur what is painted so far."""
        if radius < 6:
            self.image = self.image.filter(ImageFilter.GaussianBlur(float(radius)))
            return
        small = self.image.reduce(4).filter(ImageFilter.GaussianBlur(radius / 4))
        self.image = small.resize(self.image.size, _BICUBIC)

    def _drop_shadow(self, mask: Image.Image, box: Box, offset: float) -> None:
        dx, dy = int(-offset * np.cos(self.light)), int(-offset * np.sin(self.light))
        dark = self.rng.uniform(0.25, 0.7)
        shade = mask.reduce(2) if min(mask.size) > 4 else mask
        pad = int(offset) + 2
        wide = Image.new("L", (shade.width + 2 * pad, shade.height + 2 * pad))
        wide.paste(shade.point(lambda v: v * dark), (pad, pad))
        wide = wide.filter(ImageFilter.GaussianBlur(float(offset) / 3))
        if shade is not mask:
            wide, pad = wide.resize((2 * wide.width, 2 * wide.height), _BILINEAR), 2 * pad
        self.image.paste((8, 8, 12), (box[0] - pad + dx, box[1] - pad + dy), wide)

    def _shaded(self, pixels: Image.Image, strength: float) -> Image.Image:
        """Darker away from the light, as on a curved surface."""
        rng = self.rng
        y, x = np.mgrid[-1:1:9j, -1:1:9j]
        toward = x * np.cos(self.light) + y * np.sin(self.light)
        dark = 0.5 - 0.5 * toward if rng.random() < 0.5 else 0.8 * (x**2 + y**2) - 0.4 * toward
        alpha = Image.fromarray(np.clip(255 * strength * dark, 0, 230).astype(np.uint8)).resize(pixels.size, _BICUBIC)
        pixels.paste((6, 6, 10), (0, 0), alpha)
        return pixels
