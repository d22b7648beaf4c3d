"""A bank of tileable gray textures that synthetic images are filled with: made once a process, the same on any machine.

Noise with power-law spectra, cells, carpets of tiny leaves, fur, weaves, bricks, windows and print. Each is an 8-bit
plane of TILE×TILE pixels, mean about 127, repeated 2×2 so that windows of it can start anywhere.
"""

from __future__ import annotations

import functools
import string
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

TILE = 512

Plane = NDArray[np.float32]


class Bank(NamedTuple):
    """Textures by what they look like; each a gray Pillow image of 2·TILE × 2·TILE."""

    noise: tuple[Image.Image, ...]  # scale-free: clouds, plaster, rock, water, wood
    carpet: tuple[Image.Image, ...]  # crowds of small things: gravel, foliage, fur, cells
    pattern: tuple[Image.Image, ...]  # made by people: stripes, checks, weaves, bricks, windows
    print: tuple[Image.Image, ...]  # lines of characters


def generator(*key: int) -> np.random.Generator:
    """A counter-based generator: the same numbers for the same key, in any process."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@functools.cache
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font, where it was built with FreeType at that size."""
    return ImageFont.load_default(size)


@functools.cache
def bank() -> Bank:
    """All textures (about a second the first time)."""
    rng = generator(0x7E87)
    noise = [_noise(rng, alpha) for alpha in (0.7, 1.0, 1.0, 1.3, 1.7, 2.2)]
    noise += [_noise(rng, alpha, stretch) for alpha, stretch in ((1.0, 6.0), (1.2, 14.0), (1.6, 4.0))]
    noise += [_ridges(rng, 1.4), _ridges(rng, 1.9), _wood(rng), _ripples(rng)]
    carpet = [_leaves(rng, 2.0, 14.0, 0.9), _leaves(rng, 2.5, 30.0, 0.35), _leaves(rng, 1.6, 6.0, 0.5)]
    carpet += [_fur(rng, 34.0, 0.12), _fur(rng, 60.0, 0.35), _fur(rng, 18.0, 0.8)]
    carpet += [_cells(rng, n, edges) for n, edges in ((64, False), (40, True), (24, False), (96, True))]
    pattern = [_stripes(rng, n, duty) for n, duty in ((64, 0.5), (40, 0.25), (24, 0.7), (85, 0.5))]
    pattern += [_checks(rng, 32), _weave(64), _weave(42), _dots(40, 0.3), _dots(26, 0.4), _plaid(rng)]
    pattern += [_bricks(rng, 32, 8), _bricks(rng, 16, 8), _bricks(rng, 64, 32)]
    pattern += [_windows(rng, 16, 12), _windows(rng, 10, 16), _herringbone(48)]
    prints = [_page(rng, size) for size in (13, 18, 26, 44)]
    return Bank(*(tuple(_tiled(p) for p in group) for group in (noise, carpet, pattern, prints)))


def _tiled(plane: Plane) -> Image.Image:
    plane = plane - plane.mean()
    samples = np.clip(127.5 + plane * (55 / max(float(plane.std()), 1e-6)), 0, 255).astype(np.uint8)
    return Image.fromarray(np.tile(samples, (2, 2)))


def _grid() -> tuple[Plane, Plane]:
    """Rows and columns in [0, 1) of a tile."""
    axis = np.arange(TILE, dtype=np.float32) / TILE
    return np.repeat(axis[:, None], TILE, axis=1), np.repeat(axis[None], TILE, axis=0)


def _noise(rng: np.random.Generator, alpha: float, stretch: float = 1.0) -> Plane:
    """Gaussian noise with amplitude spectrum |f|^-alpha, its horizontal frequencies weighted by `stretch`."""
    fy = np.fft.fftfreq(TILE, 1 / TILE)[:, None]
    fx = np.fft.rfftfreq(TILE, 1 / TILE)[None]
    f = np.hypot(fy, fx * stretch)
    f[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((TILE, TILE))) * np.maximum(f, 2.0) ** -alpha
    plane = np.fft.irfft2(spectrum, s=(TILE, TILE))
    return (plane / plane.std()).astype(np.float32)


def _ridges(rng: np.random.Generator, alpha: float) -> Plane:
    """Veins of marble, cracks: where noise crosses zero."""
    return -np.sqrt(np.abs(_noise(rng, alpha)) + 0.01) + 0.25 * _noise(rng, 1.0)


def _wood(rng: np.random.Generator) -> Plane:
    _, x = _grid()
    rings = np.sin(2 * np.pi * (12 * x + 0.9 * _noise(rng, 2.0, 0.25)))
    return (rings + 0.6 * _noise(rng, 0.9, 0.06)).astype(np.float32)


def _ripples(rng: np.random.Generator) -> Plane:
    y, _ = _grid()
    waves = np.sin(2 * np.pi * (30 * y + 0.8 * _noise(rng, 1.9, 0.4)))
    return (waves + 0.7 * _noise(rng, 1.2, 0.3)).astype(np.float32)


def _wrapped(draw: ImageDraw.ImageDraw, outline: NDArray[np.float64], tone: int, side: int) -> None:
    """A polygon on a torus of `side` pixels."""
    low, high = outline.min(0), outline.max(0)
    for dx in (0, side) if low[0] < 0 else (0, -side) if high[0] > side else (0,):
        for dy in (0, side) if low[1] < 0 else (0, -side) if high[1] > side else (0,):
            draw.polygon((outline + np.array((dx, dy))).ravel().tolist(), fill=tone)


def _leaves(rng: np.random.Generator, smallest: float, largest: float, roundness: float) -> Plane:
    """Dead leaves of radius `smallest` to `largest` pixels: ellipses with axis ratios from `roundness` to 1."""
    side = 2 * TILE
    image = Image.new("L", (side, side), 128)
    draw = ImageDraw.Draw(image)
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    count = int(TILE**2 / (3 * smallest**1.6))
    radii = 2 * power_law(rng, smallest, largest, count)
    radii = radii[np.argsort(-np.log(radii) + rng.normal(0, 0.7, count))]
    for radius in radii:
        turn = rng.uniform(0, np.pi)
        c, s = np.cos(turn), np.sin(turn)
        points = circle * (radius, radius * rng.uniform(roundness, 1) * 0.9) @ np.array([[c, s], [-s, c]])
        tone = int(np.clip(rng.normal(128, 45), 0, 255))
        center = rng.uniform(0, side, 2)
        if radius > 8:  # a lit rim
            _wrapped(draw, points + center, max(tone - 40, 0), side)
            points = points * 0.85 - radius * 0.06
        _wrapped(draw, points + center, tone, side)
    return np.asarray(image.reduce(2), dtype=np.float32)


def _fur(rng: np.random.Generator, length: float, spread: float) -> Plane:
    """Tapered strokes of `length` pixels around one direction, `spread` radians apart, bending with a slow field."""
    side = 2 * TILE
    image = Image.new("L", (side, side), 100)
    draw = ImageDraw.Draw(image)
    bend = _noise(rng, 2.4)
    for _ in range(int(2.2 * TILE**2 / (2.5 * length))):
        start = rng.uniform(0, side, 2)
        i, j = (start / 2).astype(int) % TILE
        angle = np.pi / 2 + rng.normal(0, spread) + 0.35 * float(bend[j, i])
        size = 2 * length * rng.uniform(0.4, 1.2)
        curl = rng.normal(0, 0.25)
        t = np.linspace(0, 1, 4)[:, None]
        heading = angle + curl * t
        path = start + size * t * np.concatenate([np.cos(heading), np.sin(heading)], 1)
        normal = np.concatenate([-np.sin(heading), np.cos(heading)], 1)
        width = rng.uniform(0.8, 3.0) * (1 - 0.9 * t)
        outline = np.concatenate([path + width * normal, (path - width * normal)[::-1]])
        _wrapped(draw, outline, int(np.clip(rng.normal(128, 55), 0, 255)), side)
    return np.asarray(image.reduce(2), dtype=np.float32)


def _cells(rng: np.random.Generator, count: int, edges: bool) -> Plane:
    """Voronoi cells of count² jittered points: plates of random tone with gaps (edges), or domes."""
    y, x = (v * count for v in _grid())
    row, column = np.floor(y).astype(int), np.floor(x).astype(int)
    offsets = rng.uniform(0.05, 0.95, (2, count, count)).astype(np.float32)
    tones = rng.standard_normal((count, count)).astype(np.float32)
    nearest = np.full(y.shape, 9.0, np.float32)
    second = nearest.copy()
    tone = np.zeros_like(nearest)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            i, j = (row + dy) % count, (column + dx) % count
            distance = np.hypot(row + dy + offsets[0, i, j] - y, column + dx + offsets[1, i, j] - x)
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            tone = np.where(closer, tones[i, j], tone)
            nearest = np.minimum(nearest, distance)
    if edges:
        return (0.6 * tone + 3 * np.clip((second - nearest) / 0.16, 0, 1)).astype(np.float32)
    return (0.5 * tone + 2.2 * (1 - nearest**2)).astype(np.float32)


def _ramp(distance: Plane, period: float) -> Plane:
    """A step at distance 0, one and a half pixels wide, of a pattern with `period` pixels a unit."""
    return np.clip(0.5 + distance * np.float32(period / 1.5), 0, 1)


def _stripes(rng: np.random.Generator, count: int, duty: float) -> Plane:
    _, x = _grid()
    phase = x * count
    tones = rng.normal(0, 0.25, count).astype(np.float32)[np.floor(phase).astype(int) % count]
    wave = duty / 2 - np.abs(phase % 1 - 0.5)
    return _ramp(wave, TILE / count) * (1 + tones)


def _checks(rng: np.random.Generator, count: int) -> Plane:
    y, x = (v * count for v in _grid())
    i, j = np.floor(y).astype(int), np.floor(x).astype(int)
    tones = rng.normal(0, 0.18, (count, count)).astype(np.float32)
    return ((i + j) % 2 + tones[i, j]).astype(np.float32)


def _weave(count: int) -> Plane:
    y, x = (v * count for v in _grid())
    over = (np.floor(y) + np.floor(x)) % 2
    warp, weft = np.sin(np.pi * (x % 1)), np.sin(np.pi * (y % 1))
    return np.where(over == 0, warp * (0.6 + 0.4 * weft), 0.75 * weft * (0.6 + 0.4 * warp)).astype(np.float32)


def _dots(count: int, radius: float) -> Plane:
    y, x = (v * count for v in _grid())
    shift = 0.5 * (np.floor(y) % 2)
    distance = np.hypot(y % 1 - 0.5, (x + shift) % 1 - 0.5)
    return _ramp((radius - distance).astype(np.float32), TILE / count)


def _plaid(rng: np.random.Generator) -> Plane:
    threads = 64
    row, column = rng.choice([0.0, 0.2, 0.5, 1.0], (2, threads), p=[0.4, 0.25, 0.2, 0.15]).astype(np.float32)
    y, x = _grid()
    twill = ((x + y) * TILE / 4 % 1 < 0.5).astype(np.float32)
    i, j = (y * threads).astype(int), (x * threads).astype(int)
    return row[i] * (0.5 + 0.3 * twill) + column[j] * (0.8 - 0.3 * twill)


def _bricks(rng: np.random.Generator, rows: int, columns: int) -> Plane:
    y, x = _grid()
    y, x = y * rows, x * columns
    i = np.floor(y).astype(int)
    x = x + np.where(i % 2 == 0, 0.0, 0.5).astype(np.float32)
    j = np.floor(x).astype(int) % columns
    height, width = TILE / rows, TILE / columns
    joint = max(1.2, 0.07 * height)
    edge = np.minimum(np.minimum(y % 1, 1 - y % 1) * height, np.minimum(x % 1, 1 - x % 1) * width)
    tones = rng.normal(1, 0.22, (rows, columns)).astype(np.float32)
    return np.clip((edge - joint) / 1.5 + 0.5, 0, 1) * tones[i, j] + 0.12 * _noise(rng, 0.8)


def _windows(rng: np.random.Generator, rows: int, columns: int) -> Plane:
    """Facade: panes with frames, mullions and a tone of their own, in a lighter wall."""
    y, x = _grid()
    y, x = y * rows, x * columns
    i, j = np.floor(y).astype(int), np.floor(x).astype(int)
    height, width = TILE / rows, TILE / columns
    inside = np.minimum((0.36 - np.abs(y % 1 - 0.5)) * height, (0.30 - np.abs(x % 1 - 0.5)) * width)
    mullion = np.minimum(np.abs(x % 1 - 0.5) * width, np.abs(y % 1 - 0.42) * height)
    tones = rng.beta(0.8, 1.6, (rows, columns)).astype(np.float32)[i, j] * (0.7 + 0.6 * (y % 1))
    pane = np.clip(inside / 1.5 + 0.5, 0, 1)
    frame = np.clip((inside + 2.5) / 1.5, 0, 1) - np.clip((inside - 1.2) / 1.5 + 0.5, 0, 1)
    glass = np.where(mullion < 1.1, 1.1, tones)
    wall = 0.85 + 0.06 * _noise(rng, 1.0)
    return (wall * (1 - pane) + glass * pane + 0.35 * frame).astype(np.float32)


def _herringbone(count: int) -> Plane:
    y, x = (v * count for v in _grid())
    slope = np.where(np.floor(x / 2) % 2 == 0, x, -x)
    return _ramp((np.abs((y + slope) % 1 - 0.5) - 0.25).astype(np.float32), TILE / count)


def words(rng: np.random.Generator, count: int) -> str:
    """`count` made-up words and numbers."""
    lengths = rng.integers(1, 10, count)
    letters = np.array(list(string.ascii_lowercase * 4 + string.ascii_uppercase + string.digits + "&%+-.,:;!?"))
    picks = rng.integers(0, len(letters), int(lengths.sum()))
    text, start = [], 0
    for length in lengths:
        text.append("".join(letters[picks[start : start + length]]))
        start += length
    return " ".join(text)


def _page(rng: np.random.Generator, size: int) -> Plane:
    image = Image.new("L", (TILE, TILE), 235)
    draw = ImageDraw.Draw(image)
    y = 2
    while y < TILE - size:
        if rng.random() < 0.9:
            draw.text((int(rng.integers(0, size * 2)), y), words(rng, 3 + 600 // size // 5), fill=20, font=font(size))
        y += int(size * 1.25)
    return np.asarray(image, dtype=np.float32)


def power_law(rng: np.random.Generator, low: float, high: float, count: int) -> NDArray[np.float64]:
    """`count` sizes in [low, high] with density ∝ r^-3: the same area in every octave, whatever the zoom."""
    u = rng.random(count)
    return (low**-2 - u * (low**-2 - high**-2)) ** -0.5
