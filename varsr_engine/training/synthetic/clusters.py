"""Many small things of one kind: hair and grass, foliage and pebbles, twigs."""

from __future__ import annotations

import numpy as np

from varsr_engine.training.synthetic.canvas import Canvas
from varsr_engine.training.synthetic.colors import to_ink
from varsr_engine.training.synthetic.fills import Fills
from varsr_engine.training.synthetic.shapes import FAMILIES, random_outline, ribbon, rotation, scale_free


def strokes(canvas: Canvas, fills: Fills) -> None:
    """A bundle of thin strokes around one direction: hair, grass, straw, needles, scratches."""
    rng, side = canvas.rng, canvas.side
    length = side * scale_free(rng, 0.03, 0.4)
    extent = side * rng.uniform(0.1, 0.6)
    center = rng.uniform(0, side, 2)
    count = int(np.clip(rng.uniform(0.5, 4) * extent**2 / (6 * length) / 3, 15, 900))
    angle, spread = rng.uniform(0, 2 * np.pi), rng.choice((0.05, 0.2, 0.6, 3.0))
    curl, widest = rng.normal(0, 0.7), scale_free(rng, 0.8, 5)
    box = canvas.box(center - extent - length, center + extent + length)
    if box is None:
        return
    dark, bright = fills.color(), fills.color()
    bright = 0.5 * dark + 0.5 * bright if rng.random() < 0.6 else bright
    starts = center + extent * rng.uniform(-1, 1, (count, 2)) * (1, rng.choice((0.15, 1.0)))
    headings = angle + spread * rng.normal(0, 0.5, count)
    t = np.linspace(0, 1, 5)[:, None]
    with canvas.fine(box) as (draw, origin):
        for start, heading, mix in zip(starts, headings, rng.random(count), strict=True):
            bend = heading + (curl + rng.normal(0, 0.2)) * t
            path = start - origin + length * rng.uniform(0.5, 1) * t * np.concatenate([np.cos(bend), np.sin(bend)], 1)
            normal = np.concatenate([-np.sin(bend), np.cos(bend)], 1) * widest * rng.uniform(0.4, 1) * (1 - 0.8 * t)
            outline = 2 * np.concatenate([path + normal, (path - normal)[::-1]])
            color = (dark + mix * (bright - dark)) * rng.uniform(0.75, 1.2)
            draw.polygon(outline.ravel().tolist(), fill=to_ink(color))


def cluster(canvas: Canvas, fills: Fills) -> None:
    """Many leaves of one kind and colour: foliage, pebbles, petals, tiles, a crowd."""
    rng, side = canvas.rng, canvas.side
    kind = int(rng.integers(0, FAMILIES))
    extent = side * rng.uniform(0.06, 0.35) * (0.6 + 0.4 * rng.random(2))
    center = rng.uniform(0, side, 2)
    radius = scale_free(rng, 4, side * 0.04)
    count = int(np.clip(rng.uniform(0.5, 2) * extent[0] * extent[1] / radius**2, 8, 500))
    base, fancy = fills.color(), radius > 14 and rng.random() < 0.7
    places = center + extent * np.clip(rng.normal(0, 0.55, (count, 2)), -1.6, 1.6)
    if rng.random() < 0.25:  # in rows
        places = center + radius * 2.1 * np.round((places - center) / (radius * 2.1))
    sizes = radius * np.exp(rng.normal(0, 0.25, count))
    outlines = [random_outline(rng, kind) for _ in range(6)]
    if rng.random() < 0.5:
        turns = np.full(count, rng.uniform(0, 6.3)) + rng.normal(0, 0.2, count)
    else:
        turns = rng.uniform(0, 6.3, count)
    if fancy:
        coats = [fills.any_fill(base * rng.uniform(0.75, 1.25)) for _ in range(5)]
        for i in range(min(count, 120)):
            outline = places[i] + sizes[i] * outlines[i % 6] @ rotation(turns[i])
            canvas.shape(outline, coats[i % 5], shadow=0.1 * radius, shading=0.5)
        return
    box = canvas.box(places.min(0) - 2 * radius, places.max(0) + 2 * radius)
    if box is None:
        return
    lit = np.array([np.cos(canvas.light), np.sin(canvas.light)])
    with canvas.fine(box) as (draw, origin):
        for i in range(count):
            outline = 2 * (places[i] - origin + sizes[i] * outlines[i % 6] @ rotation(turns[i]))
            color = base * rng.uniform(0.65, 1.35) + rng.normal(0, 0.02, 3)
            draw.polygon((outline - 0.4 * sizes[i] * lit).ravel().tolist(), fill=to_ink(color * 0.45))
            draw.polygon(outline.ravel().tolist(), fill=to_ink(color))
            inner = 2 * (places[i] - origin) + 0.9 * (outline - 2 * (places[i] - origin)) * 0.7 + 0.25 * sizes[i] * lit
            draw.polygon(inner.ravel().tolist(), fill=to_ink(color * 1.12))


def branches(canvas: Canvas, fills: Fills) -> None:
    """A twig that forks, thinner at every fork."""
    rng, side = canvas.rng, canvas.side
    color = fills.color() * rng.uniform(0.3, 1)
    start, heading = rng.uniform(-0.1, 1.1, 2) * side, rng.uniform(0, 6.3)
    tips = [(start, heading, side * rng.uniform(0.08, 0.3), side * rng.uniform(0.003, 0.02))]
    outlines = []
    for _ in range(int(rng.integers(30, 160))):
        point, heading, length, width = tips.pop(0)
        t = np.linspace(0, 1, 6)[:, None]
        bend = heading + rng.normal(0, 0.3) * t
        path = point + length * t * np.concatenate([np.cos(bend), np.sin(bend)], 1)
        outlines.append(ribbon(path, width * np.linspace(1, 0.7, 6)))
        for _ in range(2 if rng.random() < 0.8 else 3):
            turn = heading + rng.normal(0, 0.55)
            tips.append((path[-1], turn, length * rng.uniform(0.55, 0.95), max(width * rng.uniform(0.5, 0.75), 0.7)))
    points = np.concatenate(outlines)
    box = canvas.box(points.min(0), points.max(0))
    if box is None:
        return
    with canvas.fine(box) as (draw, origin):
        for outline in outlines:
            draw.polygon((2 * (outline - origin)).ravel().tolist(), fill=to_ink(color * rng.uniform(0.8, 1.2)))
