"""A decoded picture, and the limits that are checked before one is decoded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varsr_engine.errors import ImageTooLargeError, PayloadTooLargeError

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """Upright pixels and the metadata that is written back with them.

    rgb: (H, W, 3) float32 in [0, 1]; a gray source has three equal channels. alpha: (H, W) float32 in [0, 1], not
    premultiplied. icc_profile: of the mode that is written, that is gray if `gray`, else RGB. exif: starts with
    b"Exif\\0\\0" and holds no orientation. format: Pillow's name of the source's format ("PNG").
    bit_depth: 8, or 16 for every source with more than 8 bits a sample. gray: the source has no colour channels.
    """

    rgb: FloatArray
    alpha: FloatArray | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    format: str | None = None
    bit_depth: int = 8
    gray: bool = False

    def __post_init__(self) -> None:
        if self.rgb.ndim != 3 or self.rgb.shape[2] != 3 or self.rgb.size == 0:
            raise ValueError(f"Picture: rgb must be (H, W, 3) with H, W > 0, got {self.rgb.shape}")
        if self.alpha is not None and self.alpha.shape != self.rgb.shape[:2]:
            raise ValueError(f"Picture: alpha must be (H, W) = {self.rgb.shape[:2]}, got {self.alpha.shape}")
        if self.bit_depth not in (8, 16):
            raise ValueError(f"Picture: bit_depth must be 8 or 16, got {self.bit_depth}")

    @property
    def width(self) -> int:
        return int(self.rgb.shape[1])

    @property
    def height(self) -> int:
        return int(self.rgb.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), as Pillow orders them."""
        return self.width, self.height


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """What is refused before decoding: pixels (width * height), bytes of the file, pixels of the longer side."""

    max_pixels: int
    max_bytes: int
    max_side: int

    def check_size(self, width: int, height: int, name: str) -> None:
        """Raise ImageTooLargeError if an image of this size exceeds a limit."""
        if max(width, height) > self.max_side:
            raise ImageTooLargeError(
                f"{name}: {width}x{height}; at most {self.max_side} pixels a side are allowed",
                width=width,
                height=height,
                max_side=self.max_side,
            )
        if width * height > self.max_pixels:
            raise ImageTooLargeError(
                f"{name}: {width}x{height} is {width * height} pixels; at most {self.max_pixels} are allowed",
                width=width,
                height=height,
                max_pixels=self.max_pixels,
            )

    def check_bytes(self, count: int, name: str) -> None:
        """Raise PayloadTooLargeError if a file of `count` bytes exceeds the limit."""
        if count > self.max_bytes:
            raise PayloadTooLargeError(
                f"{name}: {count} bytes; at most {self.max_bytes} are allowed", bytes=count, max_bytes=self.max_bytes
            )
