"""Synthetic pictures with the statistics of photographs, to train on where there are none.

A dead leaves image (Lee, Mumford & Huang 2001) is a pile of shapes that hide each other; with sizes of density r^-3 it
looks the same at every zoom, and has the edges and the 1/f spectrum of nature. Such pictures train restoration networks
nearly as well as photographs do (Achddou, Gousseau & Ladjal 2021, 2023). Here the leaves are filled with textures and
shaded, and joined by what a pile of leaves lacks: skies, foliage, fur, facades, print, wires, depth of field, light.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from varsr_engine.training.synthetic.exposure import develop
from varsr_engine.training.synthetic.scene import Scene
from varsr_engine.training.textures import generator

__all__ = ["SMALLEST_SIDE", "VERSION", "dead_leaves"]

VERSION = 3  # of the pictures: change it with anything that changes them
SMALLEST_SIDE = 16

# What photographs were made small with; none blurs the edges.
_REDUCTIONS = (
    Image.Resampling.BOX,
    Image.Resampling.HAMMING,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


def dead_leaves(side: int, seed: int) -> NDArray[np.uint8]:
    """A picture (side, side, 3), RGB: a pure function of its arguments, different in content for every seed ≥ 0."""
    if side < SMALLEST_SIDE:
        raise ValueError(f"dead_leaves: side must be at least {SMALLEST_SIDE}, got {side}")
    if seed < 0:
        raise ValueError(f"dead_leaves: seed must not be negative, got {seed}")
    rng = generator(VERSION, side, seed)
    scene = Scene(side, rng)
    scene.paint()
    reduction = _REDUCTIONS[rng.choice(4, p=(0.2, 0.3, 0.3, 0.2))]
    return develop(scene.canvas.image.resize((side, side), reduction), rng)
