"""Synthetic pictures with the statistics of photographs, to train on where there are none.

A dead leaves image (Lee, Mumford & Huang 2001) is a pile of shapes that hide each other; with sizes of density r^-3 it
looks the same at every zoom, and has the edges and the 1/f spectrum of nature. Such pictures train restoration networks
nearly as well as photographs do (Achddou, Gousseau & Ladjal 2021, 2023). Here the leaves are filled with textures and
shaded, and joined by what a pile of leaves lacks: skies, foliage, fur, facades, print, wires, depth of field, light.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from varsr_engine.training.textures import SPREAD, TILE, Group, font, generator, group_size, power_law, texture, words

__all__ = ["SMALLEST_SIDE", "VERSION", "dead_leaves"]

VERSION = 3  # of the pictures: change it with anything that changes them
SMALLEST_SIDE = 16

_SCALE = 2  # the canvas has that many pixels a pixel of the picture; outlines are drawn with twice as many again

Color = NDArray[np.float64]  # RGB in [0, 1]
Points = NDArray[np.float64]  # (n, 2), x before y
Box = tuple[int, int, int, int]
Fill = Callable[[int, int], Image.Image]  # width, height → RGB

_BILINEAR = Image.Resampling.BILINEAR
_BICUBIC = Image.Resampling.BICUBIC
# What photographs were made small with; none blurs the edges.
_REDUCTIONS = (Image.Resampling.BOX, Image.Resampling.HAMMING, _BICUBIC, Image.Resampling.LANCZOS)
_HUES = (0.6, 0.7, 0.85, 1.2, 1.9, 3.7, 4.1)  # radians: skin, wood, earth, dry grass, leaves, water and sky


def dead_leaves(side: int, seed: int) -> NDArray[np.uint8]:
    """A picture (side, side, 3), RGB: a pure function of its arguments, different in content for every seed ≥ 0."""
    if side < SMALLEST_SIDE:
        raise ValueError(f"dead_leaves: side must be at least {SMALLEST_SIDE}, got {side}")
    if seed < 0:
        raise ValueError(f"dead_leaves: seed must not be negative, got {seed}")
    rng = generator(VERSION, side, seed)
    scene = _Scene(side, rng)
    scene.paint()
    reduction = _REDUCTIONS[rng.choice(4, p=(0.2, 0.3, 0.3, 0.2))]
    return _develop(scene.canvas.resize((side, side), reduction), rng)


class _Scene:
    """A canvas of 2·side pixels, painted from the back to the front. Lengths are in canvas pixels."""

    def __init__(self, side: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.side = side * _SCALE
        self.palette = _palette(rng)
        self.busy = rng.beta(1.2, 1.8)  # how much of the picture is full of small things
        self.roughness = rng.beta(2.0, 1.3)  # how many of the leaves are textured
        self.light = rng.uniform(0, 2 * np.pi)
        field = Image.fromarray(rng.standard_normal((5, 5)).astype(np.float32)).resize((32, 32), _BICUBIC)
        self.density = np.asarray(field)  # where small things gather
        self.canvas = Image.new("RGB", (self.side, self.side))

    def paint(self) -> None:
        rng = self.rng
        self._backdrop()
        if rng.random() < 0.25:
            self._structure(large=True)
        self._leaves(0.5 + 1.0 * self.busy, self.side * 0.05, self.side * 0.5)
        if rng.random() < 0.3:  # the far part is out of focus
            self._defocus(_scale_free(rng, 1.5, 16))
        for _ in range(rng.integers(1, 4)):
            self._something()
        self._leaves(0.12 + 0.9 * self.busy**1.5, 14, self.side * 0.3)
        self._crumbs(0.05 + 0.8 * self.busy**1.5)
        for _ in range(rng.integers(1, 4)):
            self._something()
        if rng.random() < 0.2:
            self._cast_shadow()
        self._leaves(0.12, 12, self.side * 0.3)
        self._crumbs(0.2 * self.busy)
        if rng.random() < 0.5:
            self._something()
        if rng.random() < 0.12:
            self._near_blur()

    def _something(self) -> None:
        """One of the things that are no single leaves."""
        kinds = (self._strokes, self._cluster, self._structure, self._writing, self._wires, self._branches)
        kinds[self.rng.choice(6, p=(0.26, 0.24, 0.14, 0.14, 0.12, 0.10))]()

    # What a scene consists of

    def _backdrop(self) -> None:
        """A sky, a plain wall or a textured ground; sometimes two of them with a horizon."""
        rng, side = self.rng, self.side
        kind = rng.choice(4, p=(0.25, 0.2, 0.3, 0.25))
        if kind == 0:
            fill = self._smooth(0.3)
        elif kind == 1:
            fill = self._textured("noise", contrast=float(rng.uniform(0.03, 0.13)))
        else:
            fill = self._textured("noise" if kind == 2 else "carpet")
        self.canvas.paste(fill(side, side), (0, 0))
        if rng.random() < 0.4:
            x = np.linspace(-0.1, 1.1, 40) * side
            rise = np.convolve(rng.normal(0, 1, 60), np.hanning(20) / 10, "valid")[:40]
            y = side * (rng.uniform(0.25, 0.85) + rng.choice((0.0, 0.01, 0.06)) * rise)
            ground = np.concatenate([np.stack([x, y], 1), [(1.1 * side, 1.1 * side), (-0.1 * side, 1.1 * side)]])
            self._shape(ground, self._any_fill())

    def _leaves(self, coverage: float, smallest: float, largest: float) -> None:
        """Leaves of power-law sizes over `coverage` of the canvas, larger ones rather below smaller ones."""
        rng, side = self.rng, self.side
        smallest = min(smallest, largest / 4)
        mean_area = 2.2 * np.log(largest / smallest) * 2 / (smallest**-2 - largest**-2)
        count = rng.poisson(coverage * side**2 / mean_area)
        radii = power_law(rng, smallest, largest, count)
        radii = radii[np.argsort(-np.log(radii) + rng.normal(0, 0.9, count))]
        family = rng.integers(0, _FAMILIES, 3)
        for radius, center in zip(radii, self._places(count), strict=False):
            kind = family[rng.integers(0, 3)] if rng.random() < 0.7 else rng.integers(0, _FAMILIES)
            outline = center + radius * _outline(rng, int(kind))
            color = self._near(center, 0.5) if rng.random() < 0.5 else self._color()
            depth = rng.random()
            self._shape(
                outline,
                self._any_fill(color) if radius > 10 else self._smooth(0.15, color),
                shadow=0.04 * radius + 2 if depth < 0.35 and radius > 8 else 0.0,
                shading=rng.uniform(0.15, 0.8) if rng.random() < 0.5 and radius > 8 else 0.0,
                soft=float(rng.exponential(5.0)) if rng.random() < 0.04 else 0.0,
            )

    def _crumbs(self, coverage: float) -> None:
        """The smallest leaves, one to a few pixels, each of one colour, most of them near the colour they lie on."""
        rng, side = self.rng, self.side
        count = min(int(rng.poisson(coverage * 0.01 * side**2)), side * 4)
        centers = self._places(count, gathered=True)
        count = len(centers)
        radii = np.sort(power_law(rng, 2.0, 12.0, count))[::-1]
        corners = rng.integers(3, 9, count)
        angles = np.arange(8) * (2 * np.pi / corners[:, None])
        x, y = np.cos(angles), rng.uniform(0.25, 1, (count, 1)) * np.sin(angles)
        turns = rng.uniform(0, 2 * np.pi, (count, 1))
        c, s = np.cos(turns), np.sin(turns)
        outlines = 2 * (centers[:, None] + radii[:, None, None] * np.stack([c * x - s * y, s * x + c * y], 2))
        base = np.array([self._color() for _ in range(6)])[rng.integers(0, 6, count)]
        local = np.asarray(self.canvas)[tuple(np.clip(centers.T[::-1], 0, side - 1).astype(int))] / 255
        foreign = rng.random((count, 1)) < rng.choice((0.05, 0.3, 0.8))
        tones = np.exp(rng.uniform(0.1, 0.6) * rng.normal(size=(count, 1))) * np.exp(rng.normal(0, 0.04, (count, 3)))
        inks = _bytes(np.where(foreign, base, local + 0.01) * tones).tolist()
        with self._fine((0, 0, side, side)) as (draw, _):
            for outline, n, ink in zip(outlines, corners, inks, strict=True):
                draw.polygon(outline[:n].ravel().tolist(), fill=tuple(ink))

    def _strokes(self) -> None:
        """A bundle of thin strokes around one direction: hair, grass, straw, needles, scratches."""
        rng, side = self.rng, self.side
        length = side * _scale_free(rng, 0.03, 0.4)
        extent = side * rng.uniform(0.1, 0.6)
        center = rng.uniform(0, side, 2)
        count = int(np.clip(rng.uniform(0.5, 4) * extent**2 / (6 * length) / 3, 15, 900))
        angle, spread = rng.uniform(0, 2 * np.pi), rng.choice((0.05, 0.2, 0.6, 3.0))
        curl, widest = rng.normal(0, 0.7), _scale_free(rng, 0.8, 5)
        box = self._box(center - extent - length, center + extent + length)
        if box is None:
            return
        dark, bright = self._color(), self._color()
        bright = 0.5 * dark + 0.5 * bright if rng.random() < 0.6 else bright
        starts = center + extent * rng.uniform(-1, 1, (count, 2)) * (1, rng.choice((0.15, 1.0)))
        headings = angle + spread * rng.normal(0, 0.5, count)
        t = np.linspace(0, 1, 5)[:, None]
        with self._fine(box) as (draw, origin):
            for start, heading, mix in zip(starts, headings, rng.random(count), strict=True):
                bend = heading + (curl + rng.normal(0, 0.2)) * t
                path = (
                    start - origin + length * rng.uniform(0.5, 1) * t * np.concatenate([np.cos(bend), np.sin(bend)], 1)
                )
                normal = np.concatenate([-np.sin(bend), np.cos(bend)], 1) * widest * rng.uniform(0.4, 1) * (1 - 0.8 * t)
                outline = 2 * np.concatenate([path + normal, (path - normal)[::-1]])
                color = (dark + mix * (bright - dark)) * rng.uniform(0.75, 1.2)
                draw.polygon(outline.ravel().tolist(), fill=_ink(color))

    def _cluster(self) -> None:
        """Many leaves of one kind and colour: foliage, pebbles, petals, tiles, a crowd."""
        rng, side = self.rng, self.side
        kind = int(rng.integers(0, _FAMILIES))
        extent = side * rng.uniform(0.06, 0.35) * (0.6 + 0.4 * rng.random(2))
        center = rng.uniform(0, side, 2)
        radius = _scale_free(rng, 4, side * 0.04)
        count = int(np.clip(rng.uniform(0.5, 2) * extent[0] * extent[1] / radius**2, 8, 500))
        base, fancy = self._color(), radius > 14 and rng.random() < 0.7
        places = center + extent * np.clip(rng.normal(0, 0.55, (count, 2)), -1.6, 1.6)
        if rng.random() < 0.25:  # in rows
            places = center + radius * 2.1 * np.round((places - center) / (radius * 2.1))
        sizes = radius * np.exp(rng.normal(0, 0.25, count))
        outlines = [_outline(rng, kind) for _ in range(6)]
        if rng.random() < 0.5:
            turns = np.full(count, rng.uniform(0, 6.3)) + rng.normal(0, 0.2, count)
        else:
            turns = rng.uniform(0, 6.3, count)
        if fancy:
            fills = [self._any_fill(base * rng.uniform(0.75, 1.25)) for _ in range(5)]
            for i in range(min(count, 120)):
                outline = places[i] + sizes[i] * outlines[i % 6] @ _rotation(turns[i])
                self._shape(outline, fills[i % 5], shadow=0.1 * radius, shading=0.5)
            return
        box = self._box(places.min(0) - 2 * radius, places.max(0) + 2 * radius)
        if box is None:
            return
        lit = np.array([np.cos(self.light), np.sin(self.light)])
        with self._fine(box) as (draw, origin):
            for i in range(count):
                outline = 2 * (places[i] - origin + sizes[i] * outlines[i % 6] @ _rotation(turns[i]))
                color = base * rng.uniform(0.65, 1.35) + rng.normal(0, 0.02, 3)
                draw.polygon((outline - 0.4 * sizes[i] * lit).ravel().tolist(), fill=_ink(color * 0.45))
                draw.polygon(outline.ravel().tolist(), fill=_ink(color))
                inner = (
                    2 * (places[i] - origin) + 0.9 * (outline - 2 * (places[i] - origin)) * 0.7 + 0.25 * sizes[i] * lit
                )
                draw.polygon(inner.ravel().tolist(), fill=_ink(color * 1.12))

    def _structure(self, large: bool = False) -> None:
        """A plane with a regular pattern, seen at an angle: facade, wall, cloth, fence, paving."""
        rng, side = self.rng, self.side
        size = side * (rng.uniform(0.5, 1.2, 2) if large else rng.uniform(0.08, 0.4, 2))
        corners = (np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) + rng.normal(0, 0.12, (4, 2))) * size / 2
        turn = rng.normal(0, 0.08) if rng.random() < 0.6 else rng.uniform(0, 6.3)
        outline = rng.uniform(0.1, 0.9, 2) * side + corners @ _rotation(turn)
        self._shape(outline, self._textured("pattern", turn=turn), shadow=float(rng.choice((0.0, 6.0))), shading=0.25)

    def _writing(self) -> None:
        """A sign, a page or lines of print right on the scene."""
        rng, side = self.rng, self.side
        size = int(_scale_free(rng, 14, side * 0.12))
        lines = int(rng.integers(1, 9)) if size < side * 0.05 else int(rng.integers(1, 3))
        text = "\n".join(words(rng, int(rng.integers(1, 6))) for _ in range(lines))
        letters = font(2 * size)
        left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=letters)
        width, height = min(int(right), 3 * side), min(int(bottom), 3 * side)
        mask = Image.new("L", (width + 8, height + 8))
        ImageDraw.Draw(mask).multiline_text((4, 4), text, fill=255, font=letters)
        turn = float(rng.normal(0, 4) if rng.random() < 0.7 else rng.uniform(0, 360))
        place = rng.uniform(-0.1, 0.7, 2) * side
        ink, paper = self._color(), self._color()
        if abs(ink.mean() - paper.mean()) < 0.25:
            paper = np.clip(paper + (0.4 if ink.mean() < 0.5 else -0.4), 0, 1)
        if rng.random() < 0.6:
            w, h = mask.width / 4 + 6, mask.height / 4 + 6
            corners = np.array([(-w, -h), (w, -h), (w, h), (-w, h)]) @ _rotation(np.radians(-turn))
            center = place + np.array(mask.rotate(turn, expand=True).size) / 4
            fill = self._tinted(paper, 0.04) if rng.random() < 0.5 else self._any_fill(paper)
            self._shape(center + corners, fill, shadow=4.0)
        mask = mask.rotate(turn, _BICUBIC, expand=True).reduce(2)
        self.canvas.paste(_ink(ink), (int(place[0]), int(place[1])), mask)

    def _wires(self) -> None:
        """Long thin curves across the picture: wires, stems, ropes, bars, cracks."""
        rng, side = self.rng, self.side
        color, width = self._color(), _scale_free(rng, 0.9, side * 0.012)
        start, turn = rng.uniform(0, side, 2), rng.uniform(0, 6.3)
        gap = side * rng.uniform(0.01, 0.12)
        sag = rng.normal(0, 0.12)
        t = np.linspace(-1.5, 1.5, 30)
        for i in range(int(rng.integers(1, 9))):
            bend = sag * (t**2 - 1) + 0.03 * rng.normal() * np.sin(t * rng.uniform(1, 5))
            path = np.stack([t, bend], 1) * side + (0, i * gap * rng.uniform(0.8, 1.2))
            fill = self._tinted(color, 0.3) if width < 5 else self._any_fill(color)
            self._shape(start + _ribbon(path, width) @ _rotation(turn), fill, shadow=float(width if width > 4 else 0))

    def _branches(self) -> None:
        """A twig that forks, thinner at every fork."""
        rng, side = self.rng, self.side
        color = self._color() * rng.uniform(0.3, 1)
        start, heading = rng.uniform(-0.1, 1.1, 2) * side, rng.uniform(0, 6.3)
        tips = [(start, heading, side * rng.uniform(0.08, 0.3), side * rng.uniform(0.003, 0.02))]
        outlines = []
        for _ in range(int(rng.integers(30, 160))):
            point, heading, length, width = tips.pop(0)
            t = np.linspace(0, 1, 6)[:, None]
            bend = heading + rng.normal(0, 0.3) * t
            path = point + length * t * np.concatenate([np.cos(bend), np.sin(bend)], 1)
            outlines.append(_ribbon(path, width * np.linspace(1, 0.7, 6)))
            for _ in range(2 if rng.random() < 0.8 else 3):
                turn = heading + rng.normal(0, 0.55)
                tips.append(
                    (path[-1], turn, length * rng.uniform(0.55, 0.95), max(width * rng.uniform(0.5, 0.75), 0.7))
                )
        points = np.concatenate(outlines)
        box = self._box(points.min(0), points.max(0))
        if box is None:
            return
        with self._fine(box) as (draw, origin):
            for outline in outlines:
                draw.polygon((2 * (outline - origin)).ravel().tolist(), fill=_ink(color * rng.uniform(0.8, 1.2)))

    def _cast_shadow(self) -> None:
        """Something outside the picture keeps the light off a part of it."""
        rng, side = self.rng, self.side
        outline = rng.uniform(0, side, 2) + side * rng.uniform(0.2, 0.8) * _outline(
            rng, int(rng.integers(0, _FAMILIES))
        )
        dark = Image.new("RGB", (1, 1), _ink(np.array([0.02, 0.03, 0.06])))
        strength = rng.uniform(0.3, 0.7)
        self._shape(outline, lambda w, h: dark.resize((w, h)), soft=float(rng.exponential(6)), opacity=strength)

    def _near_blur(self) -> None:
        """A few large things close to the lens."""
        rng, side = self.rng, self.side
        for _ in range(int(rng.integers(1, 4))):
            outline = rng.uniform(0, side, 2) + side * rng.uniform(0.05, 0.3) * _outline(rng, int(rng.integers(0, 3)))
            self._shape(outline, self._smooth(0.2), soft=side * rng.uniform(0.01, 0.04))

    def _defocus(self, radius: float) -> None:
        if radius < 6:
            self.canvas = self.canvas.filter(ImageFilter.GaussianBlur(float(radius)))
            return
        small = self.canvas.reduce(4).filter(ImageFilter.GaussianBlur(radius / 4))
        self.canvas = small.resize(self.canvas.size, _BICUBIC)

    # How it is put on the canvas

    def _places(self, count: int, gathered: bool = False) -> Points:
        """At most `count` random points, where the density field is high; gathered: in dense swarms of any size."""
        rng = self.rng
        places = rng.random((4 * count + 8, 2))
        x, y = (places * 32).astype(int).T
        logit = 7 * (self.density[y, x] + 2.2 * self.busy - 1)
        if gathered:
            field = np.asarray(texture("noise", int(rng.integers(1, 5))))
            zoom, start = rng.uniform(0.3, 1) * TILE, rng.integers(0, TILE, 2)
            u, v = (places * zoom + start).astype(int).T
            logit = np.minimum(logit, 0.25 * (field[v, u].astype(np.float64) - rng.uniform(110, 180)))
        kept = places[rng.random(len(places)) * (1 + np.exp(-logit)) < 1][:count]
        return (kept * 1.1 - 0.05) * self.side

    def _box(self, low: Points, high: Points) -> Box | None:
        """The pixels between two corners that lie on the canvas."""
        left, top = (max(int(v), 0) for v in np.floor(low))
        right, bottom = (min(int(v), self.side) for v in np.ceil(high))
        return (left, top, right, bottom) if right > left and bottom > top else None

    @contextlib.contextmanager
    def _fine(self, box: Box) -> Iterator[tuple[ImageDraw.ImageDraw, Points]]:
        """Draw on the pixels of `box` with twice the resolution; also yields the box's origin."""
        patch = self.canvas.crop(box)
        patch = patch.resize((2 * patch.width, 2 * patch.height), Image.Resampling.NEAREST)
        yield ImageDraw.Draw(patch), np.array(box[:2], dtype=np.float64)
        self.canvas.paste(patch.reduce(2), box[:2])

    def _shape(
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
        box = self._box(outline.min(0) - margin, outline.max(0) + margin)
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
        self.canvas.paste(pixels, box[:2], mask)

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
        self.canvas.paste((8, 8, 12), (box[0] - pad + dx, box[1] - pad + dy), wide)

    def _shaded(self, pixels: Image.Image, strength: float) -> Image.Image:
        """Darker away from the light, as on a curved surface."""
        rng = self.rng
        y, x = np.mgrid[-1:1:9j, -1:1:9j]
        toward = x * np.cos(self.light) + y * np.sin(self.light)
        dark = 0.5 - 0.5 * toward if rng.random() < 0.5 else 0.8 * (x**2 + y**2) - 0.4 * toward
        alpha = Image.fromarray(np.clip(255 * strength * dark, 0, 230).astype(np.uint8)).resize(pixels.size, _BICUBIC)
        pixels.paste((6, 6, 10), (0, 0), alpha)
        return pixels

    # What it is filled with

    def _color(self) -> Color:
        """A colour of the picture's palette, a little varied."""
        rng = self.rng
        base = self.palette[min(int(rng.exponential(0.3) * len(self.palette)), len(self.palette) - 1)]
        return np.clip(base * np.exp(rng.normal(0, 0.3)) + rng.normal(0, 0.025, 3), 0.01, 1)

    def _near(self, place: Points, contrast: float) -> Color:
        """The colour of the canvas at a place, darker or brighter."""
        x, y = np.clip(place, 0, self.side - 1).astype(int)
        local = np.array(self.canvas.getpixel((int(x), int(y))), dtype=np.float64) / 255
        return np.clip(local * np.exp(contrast * self.rng.normal()) + self.rng.normal(0, 0.02, 3), 0.01, 1)

    def _any_fill(self, color: Color | None = None) -> Fill:
        rng = self.rng
        if rng.random() > 0.35 + 0.6 * self.roughness:
            if rng.random() < 0.5:  # plain at first sight
                return self._textured("noise", color, contrast=float(rng.uniform(0.03, 0.13)))
            return self._smooth(float(rng.choice((0.0, 0.05, 0.25))), color)
        groups: tuple[Group, ...] = ("noise", "carpet", "pattern", "print")
        return self._textured(groups[rng.choice(4, p=(0.56, 0.24, 0.16, 0.04))], color)

    def _tinted(self, color: Color, contrast: float) -> Fill:
        """One colour from darker to brighter by `contrast`, along a line or around a point."""
        return self._smooth(contrast, color)

    def _smooth(self, contrast: float, color: Color | None = None) -> Fill:
        rng = self.rng
        base = self._color() if color is None else color
        if contrast == 0:
            return lambda w, h: Image.new("RGB", (w, h), _ink(base))
        other = base * (1 + contrast * rng.choice((-1, 1))) + rng.normal(0, 0.15, 3) * contrast
        if rng.random() < 0.25:
            other = 0.5 * (other + self._color())
        angle, radial = rng.uniform(0, 6.3), rng.random() < 0.3
        focus = rng.uniform(-0.5, 0.5, 2)

        def fill(width: int, height: int) -> Image.Image:
            y, x = np.mgrid[-1:1:9j, -1:1:9j]
            t = 0.5 + 0.4 * (np.cos(angle) * x + np.sin(angle) * y)
            if radial:
                t = np.hypot(x - focus[0], y - focus[1]) / 1.6
            colors = base + np.clip(t, 0, 1)[..., None] * (other - base)
            return Image.fromarray(_bytes(colors)).resize((width, height), _BICUBIC)

        return fill

    def _textured(
        self, group: Group, color: Color | None = None, *, turn: float | None = None, contrast: float | None = None
    ) -> Fill:
        """A window of a texture of the bank, turned, stretched and seen at an angle, in shades of a colour."""
        rng = self.rng
        source = texture(group, int(rng.integers(group_size(group))))
        base = self._color() if color is None else color
        low, high = (0.3, 1.3) if group in ("noise", "carpet") else (0.2, 0.9)
        zoom = _scale_free(rng, low, high)
        if turn is None:
            turn = 0.0 if group == "pattern" and rng.random() < 0.3 else rng.uniform(0, 6.3)
        stretch = np.exp(rng.normal(0, 0.2))
        perspective = rng.normal(0, 0.12, (4, 2)) if rng.random() < 0.4 else np.zeros((4, 2))
        start = rng.random(2)
        table = self._shades(base, group, contrast)

        def fill(width: int, height: int) -> Image.Image:
            corners = np.array([(0, 0), (0, height), (width, height), (width, 0)]) - (width / 2, height / 2)
            corners = (corners + perspective * (width, height)) * (zoom * stretch, zoom / stretch) @ _rotation(turn)
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
            other = self._color()
            colors = base + (other - base) * np.clip(0.5 + 0.5 * t / rng.uniform(0.6, 1.5), 0, 1)
            return _bytes(colors).T.ravel().tolist()
        if contrast is None:
            if rng.random() < 0.12:  # blots of two colours with sharp edges
                t = np.tanh(t * rng.uniform(3, 12))
            contrast = float(np.exp(rng.normal(np.log(0.35 if group == "carpet" else 0.24), 0.7)))
        drift = rng.normal(0, 0.3, 3) * contrast * 0.4
        colors = base * np.exp(np.clip(contrast * t, -2.5, 0.9)) + drift * t
        return _bytes(colors).T.ravel().tolist()


_FAMILIES = 9


def _outline(rng: np.random.Generator, kind: int) -> Points:
    """A shape around the origin with radius about 1, turned at random."""
    if kind in (0, 1):  # disc, ellipse
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * (1, 1 if kind == 0 else rng.uniform(0.25, 0.9))
    elif kind in (2, 3):  # smooth blob; the second one rougher
        angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        k = np.arange(1, 6 if kind == 2 else 20)
        phases = rng.uniform(0, 2 * np.pi, len(k))
        waves = (rng.normal(0, 1, len(k)) * k**-1.2) @ np.cos(k[:, None] * angles + phases[:, None])
        radius = np.exp(np.clip(0.35 * waves, -1, 0.6))
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None]
    elif kind == 4:  # convex polygon
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * (1, rng.uniform(0.5, 1))
    elif kind == 5:  # star-shaped polygon, with dents
        n = int(rng.integers(5, 14))
        angles = np.linspace(0, 2 * np.pi, n, endpoint=False)
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.35, 1.1, (n, 1))
    elif kind == 6:  # rectangle
        w, h = rng.uniform(0.2, 1.0, 2)
        points = np.array([(-w, -h), (w, -h), (w, h), (-w, h)])
        return points @ _rotation(rng.normal(0, 0.1) if rng.random() < 0.6 else rng.uniform(0, 6.3))
    elif kind == 7:  # bent bar
        t = np.linspace(-1, 1, 24)
        path = np.stack([1.8 * t, rng.normal(0, 0.4) * t**2], 1)
        points = _ribbon(path, rng.uniform(0.04, 0.25))
    else:  # pointed leaf
        t = np.linspace(0, np.pi, 20)
        x, y = np.cos(t) * 1.2, np.sin(t) * rng.uniform(0.2, 0.6) * (1 + 0.3 * np.cos(t))
        bend = rng.normal(0, 0.2) * x**2
        points = np.concatenate([np.stack([x, y + bend], 1), np.stack([x, bend - y], 1)[::-1]])
    return points @ _rotation(rng.uniform(0, 2 * np.pi))


def _ribbon(path: Points, width: float | NDArray[np.float64]) -> Points:
    """The outline of a line of half-width `width` (also one a point) along a path."""
    along = np.gradient(path, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], 1) / np.maximum(np.hypot(*along.T), 1e-9)[:, None]
    offset = normal * np.broadcast_to(width, len(path))[:, None]
    return np.concatenate([path + offset, (path - offset)[::-1]])


def _rotation(angle: float) -> Points:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s], [-s, c]])


def _palette(rng: np.random.Generator) -> list[Color]:
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


def _develop(image: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
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
    curve = _bytes(curve + bend * (curve * curve * (3 - 2 * curve) - curve))
    return curve[(pixels * 4095 + 0.5).astype(np.uint16)]


def _patina(side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Faint irregularities that every real surface has, stronger in some places: factors around 1."""
    source = texture("noise", int(rng.integers(0, 3)))
    zoom = _scale_free(rng, 0.6, 1.6)
    reach = min(side * zoom, TILE - 2.0)
    left, top = rng.uniform(1, TILE, 2)
    window = (left, top, left + reach, top + reach)
    gray = np.asarray(source.resize((side, side), _BICUBIC, window), dtype=np.float32)
    places = np.exp(rng.normal(-3.5, 0.8, (5, 5))).astype(np.float32)
    strength = np.asarray(Image.fromarray(places).resize((side, side), _BILINEAR))
    return 1 + (gray - 127.5) / SPREAD * np.minimum(strength, 0.12)


def _scale_free(rng: np.random.Generator, low: float, high: float) -> float:
    """A number from low to high (low, if that is higher), each octave as likely as any other."""
    return float(low * np.exp(rng.uniform(0, np.log(max(high / low, 1)))))


def _bytes(colors: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(np.rint(255 * colors), 0, 255).astype(np.uint8)


def _ink(color: Color) -> tuple[int, int, int]:
    r, g, b = _bytes(color)
    return int(r), int(g), int(b)
