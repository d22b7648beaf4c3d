"""What people make: facades and cloth, signs and print, wires."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from varsr_engine.training.synthetic.canvas import Canvas
from varsr_engine.training.synthetic.colors import to_ink
from varsr_engine.training.synthetic.fills import Fills
from varsr_engine.training.synthetic.shapes import ribbon, rotation, scale_free
from varsr_engine.training.textures import font, words


def structure(canvas: Canvas, fills: Fills, large: bool = False) -> None:
    """A plane with a regular pattern, seen at an angle: facade, wall, cloth, fence, paving."""
    rng, side = canvas.rng, canvas.side
    size = side * (rng.uniform(0.5, 1.2, 2) if large else rng.uniform(0.08, 0.4, 2))
    corners = (np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) + rng.normal(0, 0.12, (4, 2))) * size / 2
    turn = rng.normal(0, 0.08) if rng.random() < 0.6 else rng.uniform(0, 6.3)
    outline = rng.uniform(0.1, 0.9, 2) * side + corners @ rotation(turn)
    canvas.shape(outline, fills.textured("pattern", turn=turn), shadow=float(rng.choice((0.0, 6.0))), shading=0.25)


def writing(canvas: Canvas, fills: Fills) -> None:
    """A sign, a page or lines of print right on the scene."""
    rng, side = canvas.rng, canvas.side
    size = int(scale_free(rng, 14, side * 0.12))
    lines = int(rng.integers(1, 9)) if size < side * 0.05 else int(rng.integers(1, 3))
    text = "\n".join(words(rng, int(rng.integers(1, 6))) for _ in range(lines))
    letters = font(2 * size)
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=letters)
    width, height = min(int(right), 3 * side), min(int(bottom), 3 * side)
    mask = Image.new("L", (width + 8, height + 8))
    ImageDraw.Draw(mask).multiline_text((4, 4), text, fill=255, font=letters)
    turn = float(rng.normal(0, 4) if rng.random() < 0.7 else rng.uniform(0, 360))
    place = rng.uniform(-0.1, 0.7, 2) * side
    ink, paper = fills.color(), fills.color()
    if abs(ink.mean() - paper.mean()) < 0.25:
        paper = np.clip(paper + (0.4 if ink.mean() < 0.5 else -0.4), 0, 1)
    if rng.random() < 0.6:
        w, h = mask.width / 4 + 6, mask.height / 4 + 6
        corners = np.array([(-w, -h), (w, -h), (w, h), (-w, h)]) @ rotation(np.radians(-turn))
        center = place + np.array(mask.rotate(turn, expand=True).size) / 4
        fill = fills.smooth(0.04, paper) if rng.random() < 0.5 else fills.any_fill(paper)
        canvas.shape(center + corners, fill, shadow=4.0)
    mask = mask.rotate(turn, Image.Resampling.BICUBIC, expand=True).reduce(2)
    canvas.image.paste(to_ink(ink), (int(place[0]), int(place[1])), mask)


def wires(canvas: Canvas, fills: Fills) -> None:
    """Long thin curves across the picture: wires, stems, ropes, bars, cracks."""
    rng, side = canvas.rng, canvas.side
    color, width = fills.color(), scale_free(rng, 0.9, side * 0.012)
    start, turn = rng.uniform(0, side, 2), rng.uniform(0, 6.3)
    gap = side * rng.uniform(0.01, 0.12)
    sag = rng.normal(0, 0.12)
    t = np.linspace(-1.5, 1.5, 30)
    for i in range(int(rng.integers(1, 9))):
        bend = sag * (t**2 - 1) + 0.03 * rng.normal() * np.sin(t * rng.uniform(1, 5))
        path = np.stack([t, bend], 1) * side + (0, i * gap * rng.uniform(0.8, 1.2))
        fill = fills.smooth(0.3, color) if width < 5 else fills.any_fill(color)
        canvas.shape(start + ribbon(path, width) @ rotation(turn), fill, shadow=float(width if width > 4 else 0))
