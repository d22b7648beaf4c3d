"""A picture written to a file while its rows are made: `write_picture` for what does not fit in memory."""

from __future__ import annotations

from types import TracebackType
from typing import BinaryIO

import numpy as np
from PIL import Image

from varsr_engine.imaging.picture import FloatArray, Picture
from varsr_engine.imaging.png_stream import PngStream
from varsr_engine.imaging.samples import to_uint8, to_uint16
from varsr_engine.imaging.tiff_stream import TiffStream
from varsr_engine.imaging.writing import luma, sixteen_bit

STREAMS: dict[str, type[PngStream] | type[TiffStream]] = {
    "PNG": PngStream,
    "TIFF": TiffStream,
}  # the formats that can be written so


class PictureRows:
    """Takes the RGB rows of an upscaled picture; alpha, depth and metadata are the source's, as `write_picture` keeps
    them. As a context manager it ends the image, unless an error ended it."""

    def __init__(self, file: BinaryIO, source: Picture, size: tuple[int, int], format: str) -> None:
        """format: one of STREAMS. Raises ImageTooLargeError where it cannot hold the size."""
        self._size, self._gray, self._deep = size, source.gray, sixteen_bit(source, format)
        self._alpha = None if source.alpha is None else Image.fromarray(source.alpha)
        channels = (1 if source.gray else 3) + (source.alpha is not None)
        self._stream = STREAMS[format](
            file, size, channels, sixteen_bit=self._deep, icc_profile=source.icc_profile, exif=source.exif
        )
        self.rows = 0  # written

    def __enter__(self) -> PictureRows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._stream.close()

    def write(self, rgb: FloatArray) -> None:
        """The next rows (h, W, 3) in [0, 1]."""
        color = luma(rgb)[..., None] if self._gray else rgb
        bottom = self.rows + len(rgb)
        if self._deep:
            self._stream.write(to_uint16(color))
        else:
            samples = to_uint8(color)
            if self._alpha is not None:
                samples = np.concatenate([samples, to_uint8(self._alpha_rows(bottom))[..., None]], axis=2)
            self._stream.write(np.ascontiguousarray(samples))
        self.rows = bottom

    def _alpha_rows(self, bottom: int) -> FloatArray:
        assert self._alpha is not None
        if self._alpha.size == self._size:
            return np.asarray(self._alpha)[self.rows : bottom]
        width, height = self._alpha.size
        y = height / self._size[1]
        box = (0.0, self.rows * y, float(width), min(bottom * y, height))
        size = self._size[0], bottom - self.rows
        return np.clip(np.asarray(self._alpha.resize(size, Image.Resampling.LANCZOS, box=box)), 0, 1)
