"""Tileable gray textures that synthetic images are filled with: each made once a process, the same on any machine.

Noise with power-law spectra, cells, carpets of tiny leaves, fur, weaves, bricks, windows and print. Each is an 8-bit
plane of TILE×TILE pixels, mean about 127, repeated 2×2 so that windows of it can start anywhere.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

TILE = 512
SPREAD = 55  # standard deviation of a texture's gray levels, before they are clipped

Plane = NDArray[np.float32]
Group = Literal["noise", "carpet", "pattern", "print"]


def generator(*key: int) -> np.random.Generator:
    """A counter-based generator: the same numbers for the same key, in any process."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


@functools.cache
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font."""
    return ImageFont.load_default(size)


@functools.cache
def texture(group: Group, number: int) -> Image.Image:
    """Texture `number` (below `group_size(group)`) of a group: a gray image of 2·TILE × 2·TILE."""
    plane = _RECIPES[group][number](generator(0x7E87, list(_RECIPES).index(group), number))
    plane = plane - plane.mean()
    samples = np.clip(127.5 + plane * (SPREAD / float(plane.std())), 0, 255).astype(np.uint8)
    return Image.fromarray(np.tile(samples, (2, 2)))


def group_size(group: Group) -> int:
    """How many textures a group has."""
    return len(_RECIPES[group])


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


def _draw(outlines: NDArray[np.float64], tones: NDArray[np.float64], background: int) -> Plane:
    """Polygons (n, corners, 2) on a torus, each over those before it; drawn with twice the tile's resolution."""
    side = 2 * TILE
    image = Image.new("L", (side, side), background)
    draw = ImageDraw.Draw(image)
    inks = np.clip(tones, 0, 255).astype(int).tolist()
    low, high = outlines.min(1), outlines.max(1)
    # An outline that crosses an edge is drawn again on the opposite side.
    shifts = np.where(low < 0, side, np.where(high > side, -side, 0))
    for outline, (dx, dy), ink in zip(outlines, shifts.tolist(), inks, strict=True):
        for x in {0, dx}:
            for y in {0, dy}:
                draw.polygon((outline + np.array((x, y)) if x or y else outline).ravel().tolist(), fill=ink)
    return np.asarray(image.reduce(2), dtype=np.float32)


def _leaves(rng: np.random.Generator, smallest: float, largest: float, roundness: float) -> Plane:
    """Dead leaves of radius `smallest` to `largest` pixels: ellipses with axis ratios from `roundness` to 1."""
    area = 4.0 * np.log(largest / smallest) / (smallest**-2 - largest**-2)  # mean, about
    n = int(2.0 * TILE**2 / area)
    radii = 2 * power_law(rng, smallest, largest, n)
    radii = radii[np.argsort(-np.log(radii) + rng.normal(0, 0.7, n))]
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    x, y = np.cos(angles), rng.uniform(roundness, 1, (n, 1)) * np.sin(angles)
    turns = rng.uniform(0, np.pi, (n, 1))
    c, s = np.cos(turns), np.sin(turns)
    outlines = radii[:, None, None] * np.stack([c * x - s * y, s * x + c * y], 2)
    centers = rng.uniform(0, 2 * TILE, (n, 1, 2))
    tones = rng.normal(128, 45, n)
    lit = outlines * 0.85 - radii[:, None, None] * 0.06  # leaves a dark rim, wider on one side
    both = np.stack([outlines + centers, lit + centers], 1)
    shades = np.stack([np.where(radii > 8, tones - 40, tones), tones], 1)
    return _draw(both.reshape(2 * n, 12, 2), shades.ravel(), 128)


def _fur(rng: np.random.Generator, length: float, spread: float) -> Plane:
    """Tapered strokes of `length` pixels around one direction, `spread` radians apart, bending with a slow field."""
    n = int(0.9 * TILE**2 / length)
    starts = rng.uniform(0, 2 * TILE, (n, 1, 2))
    i, j = (starts[:, 0].T / 2).astype(int) % TILE
    headings = np.pi / 2 + rng.normal(0, spread, n) + 0.35 * _noise(rng, 2.4)[j, i]
    t = np.linspace(0, 1, 4)
    angles = headings[:, None] + rng.normal(0, 0.25, (n, 1)) * t
    along = np.stack([np.cos(angles), np.sin(angles)], 2)
    across = along[..., ::-1] * np.array((-1, 1))
    path = starts + (2 * length * rng.uniform(0.4, 1.2, (n, 1)) * t)[..., None] * along
    width = (rng.uniform(0.8, 3.0, (n, 1)) * (1 - 0.9 * t))[..., None] * across
    outlines = np.concatenate([path + width, (path - width)[:, ::-1]], 1)
    return _draw(outlines, rng.normal(128, 55, n), 100)


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


def _weave(_: np.random.Generator, count: int) -> Plane:
    y, x = (v * count for v in _grid())
    over = (np.floor(y) + np.floor(x)) % 2
    warp, weft = np.sin(np.pi * (x % 1)), np.sin(np.pi * (y % 1))
    return np.where(over == 0, warp * (0.6 + 0.4 * weft), 0.75 * weft * (0.6 + 0.4 * warp)).astype(np.float32)


def _dots(_: np.random.Generator, count: int, radius: float) -> Plane:
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


def _herringbone(_: np.random.Generator, count: int) -> Plane:
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


# New ones go to the end of a group: a texture's numbers come from its place.
_RECIPES: dict[Group, tuple[Callable[[np.random.Generator], Plane], ...]] = {
    # Scale-free: plaster, clouds, rock, water, wood.
    "noise": (
        *(partial(_noise, alpha=alpha) for alpha in (0.7, 1.0, 1.0, 1.3, 1.7, 2.2)),
        *(partial(_noise, alpha=alpha, stretch=k) for alpha, k in ((1.0, 6.0), (1.2, 14.0), (1.6, 4.0))),
        *(partial(_ridges, alpha=alpha) for alpha in (1.4, 1.9)),
        _wood,
        _ripples,
    ),
    # Crowds of small things: gravel, foliage, fur, scales.
    "carpet": (
        *(
            partial(_leaves, smallest=low, largest=high, roundness=roundness)
            for low, high, roundness in ((2.0, 14.0, 0.9), (2.5, 30.0, 0.35), (1.6, 6.0, 0.5))
        ),
        *(partial(_fur, length=length, spread=spread) for length, spread in ((34.0, 0.12), (60.0, 0.35), (18.0, 0.8))),
        *(partial(_cells, count=n, edges=edges) for n, edges in ((64, False), (40, True), (24, False), (96, True))),
    ),
    # Made by people: cloth, fences, walls, facades.
    "pattern": (
        *(partial(_stripes, count=n, duty=duty) for n, duty in ((64, 0.5), (40, 0.25), (24, 0.7), (85, 0.5))),
        partial(_checks, count=32),
        *(partial(_weave, count=n) for n in (64, 42)),
        *(partial(_dots, count=n, radius=radius) for n, radius in ((40, 0.3), (26, 0.4))),
        _plaid,
        *(partial(_bricks, rows=rows, columns=columns) for rows, columns in ((32, 8), (16, 8), (64, 32))),
        *(partial(_windows, rows=rows, columns=columns) for rows, columns in ((16, 12), (10, 16))),
        partial(_herringbone, count=48),
    ),
    # Lines of characters.
    "print": tuple(partial(_page, size=size) for size in (13, 18, 26, 44)),
}
