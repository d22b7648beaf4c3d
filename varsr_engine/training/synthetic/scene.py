"""The composition of a picture: a backdrop, then leaves, crumbs and other things, from the back to the front."""

from __future__ import annotations

import numpy as np
from PIL import Image

from varsr_engine.training.synthetic.canvas import Canvas
from varsr_engine.training.synthetic.clusters import branches, cluster, strokes
from varsr_engine.training.synthetic.colors import related_colors, to_bytes, to_ink
from varsr_engine.training.synthetic.fills import Fills
from varsr_engine.training.synthetic.shapes import FAMILIES, Points, random_outline, scale_free
from varsr_engine.training.synthetic.structures import structure, wires, writing
from varsr_engine.training.textures import TILE, power_law, texture

_SCALE = 2  # the canvas has that many pixels a pixel of the picture; outlines are drawn with twice as many again

_BICUBIC = Image.Resampling.BICUBIC


class Scene:
    """A canvas of 2·side pixels, painted from the back to the front. Lengths are in canvas pixels."""

    def __init__(self, side: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.side = side * _SCALE
        colors = related_colors(rng)
        self.busy = rng.beta(1.2, 1.8)  # how much of the picture is full of small things
        self.fills = Fills(rng, colors, roughness=rng.beta(2.0, 1.3))
        self.canvas = Canvas(self.side, rng, light=rng.uniform(0, 2 * np.pi))
        field = Image.fromarray(rng.standard_normal((5, 5)).astype(np.float32)).resize((32, 32), _BICUBIC)
        self.density = np.asarray(field)  # where small things gather

    def paint(self) -> None:
        rng = self.rng
        self._backdrop()
        if rng.random() < 0.25:
            structure(self.canvas, self.fills, large=True)
        self._leaves(0.5 + 1.0 * self.busy, self.side * 0.05, self.side * 0.5)
        if rng.random() < 0.3:  # the far part is out of focus
            self.canvas.defocus(scale_free(rng, 1.5, 16))
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
        kinds = (strokes, cluster, structure, writing, wires, branches)
        kinds[self.rng.choice(6, p=(0.26, 0.24, 0.14, 0.14, 0.12, 0.10))](self.canvas, self.fills)

    def _backdrop(self) -> None:
        """A sky, a plain wall or a textured ground; sometimes two of them with a horizon."""
        rng, side = self.rng, self.side
        kind = rng.choice(4, p=(0.25, 0.2, 0.3, 0.25))
        if kind == 0:
            fill = self.fills.smooth(0.3)
        elif kind == 1:
            fill = self.fills.textured("noise", contrast=float(rng.uniform(0.03, 0.13)))
        else:
            fill = self.fills.textured("noise" if kind == 2 else "carpet")
        self.canvas.image.paste(fill(side, side), (0, 0))
        if rng.random() < 0.4:
            x = np.linspace(-0.1, 1.1, 40) * side
            rise = np.convolve(rng.normal(0, 1, 60), np.hanning(20) / 10, "valid")[:40]
            y = side * (rng.uniform(0.25, 0.85) + rng.choice((0.0, 0.01, 0.06)) * rise)
            ground = np.concatenate([np.stack([x, y], 1), [(1.1 * side, 1.1 * side), (-0.1 * side, 1.1 * side)]])
            self.canvas.shape(ground, self.fills.any_fill())

    def _leaves(self, coverage: float, smallest: float, largest: float) -> None:
        """Leaves of power-law sizes over `coverage` of the canvas, larger ones rather below smaller ones."""
        rng, side = self.rng, self.side
        smallest = min(smallest, largest / 4)
        mean_area = 2.2 * np.log(largest / smallest) * 2 / (smallest**-2 - largest**-2)
        count = rng.poisson(coverage * side**2 / mean_area)
        radii = power_law(rng, smallest, largest, count)
        radii = radii[np.argsort(-np.log(radii) + rng.normal(0, 0.9, count))]
        family = rng.integers(0, FAMILIES, 3)
        for radius, center in zip(radii, self._places(count), strict=False):
            kind = family[rng.integers(0, 3)] if rng.random() < 0.7 else rng.integers(0, FAMILIES)
            outline = center + radius * random_outline(rng, int(kind))
            color = self.canvas.near(center, 0.5) if rng.random() < 0.5 else self.fills.color()
            depth = rng.random()
            self.canvas.shape(
                outline,
                self.fills.any_fill(color) if radius > 10 else self.fills.smooth(0.15, color),
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
        base = np.array([self.fills.color() for _ in range(6)])[rng.integers(0, 6, count)]
        local = np.asarray(self.canvas.image)[tuple(np.clip(centers.T[::-1], 0, side - 1).astype(int))] / 255
        foreign = rng.random((count, 1)) < rng.choice((0.05, 0.3, 0.8))
        tones = np.exp(rng.uniform(0.1, 0.6) * rng.normal(size=(count, 1))) * np.exp(rng.normal(0, 0.04, (count, 3)))
        inks = to_bytes(np.where(foreign, base, local + 0.01) * tones).tolist()
        with self.canvas.fine((0, 0, side, side)) as (draw, _):
            for outline, n, ink in zip(outlines, corners, inks, strict=True):
                draw.polygon(outline[:n].ravel().tolist(), fill=tuple(ink))

    def _cast_shadow(self) -> None:
        """Something outside the picture keeps the light off a part of it."""
        rng, side = self.rng, self.side
        outline = rng.uniform(0, side, 2) + side * rng.uniform(0.2, 0.8) * random_outline(
            rng, int(rng.integers(0, FAMILIES))
        )
        dark = Image.new("RGB", (1, 1), to_ink(np.array([0.02, 0.03, 0.06])))
        strength = rng.uniform(0.3, 0.7)
        self.canvas.shape(outline, lambda w, h: dark.resize((w, h)), soft=float(rng.exponential(6)), opacity=strength)

    def _near_blur(self) -> None:
        """A few large things close to the lens."""
        rng, side = self.rng, self.side
        for _ in range(int(rng.integers(1, 4))):
            outline = rng.uniform(0, side, 2) + side * rng.uniform(0.05, 0.3) * random_outline(
                rng, int(rng.integers(0, 3))
            )
            self.canvas.shape(outline, self.fills.smooth(0.2), soft=side * rng.uniform(0.01, 0.04))

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
