"""Pairs of pictures to train on, from synthetic images or any folder: every one a pure function of (seed, index)."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from varsr_engine.atomic import atomic_writer
from varsr_engine.errors import InvalidParamsError
from varsr_engine.training import synthetic
from varsr_engine.training.textures import generator

__all__ = ["Crops", "SyntheticImages"]

Pixels = NDArray[np.uint8]  # (H, W, 3)

_SHRINK_PROBABILITY = 0.4
_REMEMBERED_BYTES = 256 << 20  # decoded pictures that a process keeps


class Crops(Protocol):
    """A source of square crops."""

    def crop(self, index: int, side: int, seed: int) -> Pixels:
        """The crop (side, side, 3) that belongs to (seed, index)."""
        ...


class _Memory:
    """The pictures used last, up to a number of bytes."""

    def __init__(self, limit: int = _REMEMBERED_BYTES) -> None:
        self.limit = limit
        self.pictures: OrderedDict[int, Pixels] = OrderedDict()
        self.size = 0

    def get(self, number: int, make: Callable[[int], Pixels]) -> Pixels:
        picture = self.pictures.get(number)
        if picture is None:
            picture = self.pictures[number] = make(number)
            self.size += picture.nbytes
            while self.size > self.limit and len(self.pictures) > 1:
                self.size -= self.pictures.popitem(last=False)[1].nbytes
        self.pictures.move_to_end(number)
        return picture


class SyntheticImages:
    """`pool_size` dead leaves images of side × side pixels, made when they are first needed.

    cache: a folder that keeps them as .npy files for later runs and other processes, the generator's version in their
    names; None: each process keeps its own in memory. The same pictures either way.
    """

    def __init__(self, pool_size: int, side: int, seed: int, cache: str | os.PathLike[str] | None = None) -> None:
        if pool_size < 1 or side < 16 or seed < 0:
            raise InvalidParamsError(
                f"SyntheticImages needs pool_size ≥ 1, side ≥ 16 and seed ≥ 0, got {pool_size}, {side} and {seed}"
            )
        self.pool_size = pool_size
        self.side = side
        self.seed = seed
        self.cache = None if cache is None else Path(cache)
        self._memory = _Memory(pool_size * side * side * 3)
        if self.cache is not None:
            self.cache.mkdir(parents=True, exist_ok=True)

    def path(self, number: int) -> Path | None:
        """The file that holds image `number`, or will; None without a cache."""
        if self.cache is None:
            return None
        return self.cache / f"leaves-v{synthetic.VERSION}-{self.side}-{self.seed}-{number:06d}.npy"

    def image(self, number: int) -> Pixels:
        """Image `number` of the pool, (side, side, 3); from the cache it is a read-only view of the file."""
        if not 0 <= number < self.pool_size:
            raise IndexError(f"image must be in [0, {self.pool_size}), got {number}")
        path = self.path(number)
        return self._memory.get(number, self._make) if path is None else self._cached(number, path)

    def crop(self, index: int, side: int, seed: int) -> Pixels:
        """See `Crops`."""
        rng = generator(seed, index)
        return _cut(self.image(int(rng.integers(self.pool_size))), side, rng)

    def _make(self, number: int) -> Pixels:
        return synthetic.dead_leaves(self.side, self.seed * 1_000_003 + number)

    def _cached(self, number: int, path: Path) -> Pixels:
        try:
            picture = np.load(path, mmap_mode="r")
            if picture.shape == (self.side, self.side, 3) and picture.dtype == np.uint8:
                return cast(Pixels, picture)
        except (OSError, ValueError, EOFError):
            pass  # absent, or not what this class wrote: made anew
        picture = self._make(number)
        with atomic_writer(path) as file:  # two processes may both write it: the same bytes
            np.save(file, picture)
        return picture


def _cut(picture: Pixels, side: int, rng: np.random.Generator) -> Pixels:
    """A random square of the picture, sometimes of the picture made up to 2× smaller, turned and mirrored."""
    height, width = picture.shape[:2]
    shrink = rng.random() < _SHRINK_PROBABILITY
    factor = float(rng.uniform(1, min(2.0, min(height, width) / side))) if shrink else 1.0
    window = min(round(side * factor), height, width)
    y, x = (int(rng.integers(0, extent - window + 1)) for extent in (height, width))
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    square = picture[y : y + window, x : x + window]
    if window != side:
        image = Image.fromarray(np.ascontiguousarray(square))
        square = np.asarray(image.resize((side, side), Image.Resampling.BOX))
    square = np.rot90(square, turns)
    return np.ascontiguousarray(square[:, ::-1] if mirrored else square)
