"""Shapes: the outlines of leaves, ribbons along paths, turns and sizes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (n, 2), x before y

FAMILIES = 9  # kinds of outlines


def random_outline(rng: np.random.Generator, kind: int) -> Points:
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
        return points @ rotation(rng.normal(0, 0.1) if rng.random() < 0.6 else rng.uniform(0, 6.3))
    elif kind == 7:  # bent bar
        t = np.linspace(-1, 1, 24)
        path = np.stack([1.8 * t, rng.normal(0, 0.4) * t**2], 1)
        points = ribbon(path, rng.uniform(0.04, 0.25))
    else:  # pointed leaf
        t = np.linspace(0, np.pi, 20)
        x, y = np.cos(t) * 1.2, np.sin(t) * rng.uniform(0.2, 0.6) * (1 + 0.3 * np.cos(t))
        bend = rng.normal(0, 0.2) * x**2
        points = np.concatenate([np.stack([x, y + bend], 1), np.stack([x, bend - y], 1)[::-1]])
    return points @ rotation(rng.uniform(0, 2 * np.pi))


def ribbon(path: Points, width: float | NDArray[np.float64]) -> Points:
    """The outline of a line of half-width `width` (also one a point) along a path."""
    along = np.gradient(path, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], 1) / np.maximum(np.hypot(*along.T), 1e-9)[:, None]
    offset = normal * np.broadcast_to(width, len(path))[:, None]
    return np.concatenate([path + offset, (path - offset)[::-1]])


def rotation(angle: float) -> Points:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s], [-s, c]])


def scale_free(rng: np.random.Generator, low: float, high: float) -> float:
    """A number from low to high (low, if that is higher), each octave as likely as any other."""
    return float(low * np.exp(rng.uniform(0, np.log(max(high / low, 1)))))
