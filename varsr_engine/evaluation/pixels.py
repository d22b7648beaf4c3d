"""Pictures as metrics take them: the 8-bit samples that a file holds, or would hold once saved."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from varsr_engine.evaluation.luminance import Pixels
from varsr_engine.imaging import Picture, ReadLimits, read_picture
from varsr_engine.imaging.writing import pillow_image

EVALUATION_LIMITS = ReadLimits(max_pixels=150_000_000, max_bytes=1 << 30, max_side=65_535)


def eight_bit(picture: Picture) -> Pixels:
    """(H, W, 3) uint8, writable: what an 8-bit PNG of the picture holds, three equal channels for gray, no alpha."""
    return np.array(pillow_image(replace(picture, alpha=None, bit_depth=8), "PNG").convert("RGB"))


def read_pixels(path: str | os.PathLike[str], limits: ReadLimits = EVALUATION_LIMITS) -> Pixels:
    """An image file as `eight_bit`. Raises the errors of `read_picture`."""
    return eight_bit(read_picture(path, limits))
