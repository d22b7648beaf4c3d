"""A PNG written row by row: an image that need not fit in memory.

Source: the PNG specification (third edition), sections 5, 9 and 11.
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by channels: gray, gray and alpha, RGB, RGB and alpha
CHUNK_BYTES = 1 << 20  # of an IDAT chunk
LEVEL = 6


class PngStream:
    """Writes rows (h, width, channels) uint8 or uint16 to a file; `close` ends the image."""

    def __init__(
        self,
        file: BinaryIO,
        size: tuple[int, int],
        channels: int,
        *,
        sixteen_bit: bool = False,
        icc_profile: bytes | None = None,
        exif: bytes | None = None,
    ) -> None:
        self._file, (self._width, self._height) = file, size
        self._channels, self._sixteen_bit = channels, sixteen_bit
        self._rows = 0
        self._above: NDArray[np.uint8] | None = None
        self._deflate = zlib.compressobj(LEVEL)
        self._pending = bytearray()
        file.write(SIGNATURE)
        depth = 16 if sixteen_bit else 8
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, COLOR_TYPES[channels], 0, 0, 0))
        if icc_profile is not None:
            self._chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc_profile))
        if exif is not None:
            self._chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))

    def write(self, rows: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
        expected = np.uint16 if self._sixteen_bit else np.uint8
        if rows.shape[1:] != (self._width, self._channels) or rows.dtype != expected:
            raise ValueError(f"rows must be (h, {self._width}, {self._channels}) {expected.__name__}, got {rows.shape}")
        samples = rows.astype(">u2") if self._sixteen_bit else rows
        lines = np.ascontiguousarray(samples).reshape(rows.shape[0], -1).view(np.uint8)
        self._pending += self._deflate.compress(self._filtered(lines).tobytes())
        self._rows += rows.shape[0]
        while len(self._pending) >= CHUNK_BYTES:
            self._chunk(b"IDAT", bytes(self._pending[:CHUNK_BYTES]))
            del self._pending[:CHUNK_BYTES]

    def close(self) -> None:
        """Write the end. Raises ValueError if rows are missing or too many."""
        if self._rows != self._height:
            raise ValueError(f"{self._rows} rows were written, the image has {self._height}")
        self._chunk(b"IDAT", bytes(self._pending) + self._deflate.flush())
        self._chunk(b"IEND", b"")

    def _filtered(self, lines: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(h, 1 + bytes): each line by the filter whose result has the smallest sum of magnitudes, and its number."""
        pixel = self._channels * (2 if self._sixteen_bit else 1)
        first = np.zeros_like(lines[:1]) if self._above is None else self._above
        above = np.concatenate((first, lines[:-1]))
        self._above = lines[-1:].copy()
        left, corner = np.zeros_like(lines), np.zeros_like(lines)
        left[:, pixel:], corner[:, pixel:] = lines[:, :-pixel], above[:, :-pixel]
        mean = ((left.astype(np.uint16) + above) >> 1).astype(np.uint8)
        predictions = (np.zeros_like(lines), left, above, mean, _paeth(left, above, corner))
        candidates = [lines - prediction for prediction in predictions]  # modulo 256
        costs = np.stack([np.abs(c.view(np.int8).astype(np.int16)).sum(1, dtype=np.int64) for c in candidates])
        best = costs.argmin(0)
        out = np.empty((lines.shape[0], lines.shape[1] + 1), np.uint8)
        out[:, 0] = best
        for number, candidate in enumerate(candidates):
            chosen = best == number
            out[chosen, 1:] = candidate[chosen]
        return out

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self._file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


def _paeth(left: NDArray[np.uint8], above: NDArray[np.uint8], corner: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Of left, above and corner the one nearest to left + above - corner, the first of equally near ones."""
    a, b, c = (t.astype(np.int16) for t in (left, above, corner))
    to_left, to_above, to_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    nearest_left = (to_left <= to_above) & (to_left <= to_corner)
    return np.where(nearest_left, left, np.where(to_above <= to_corner, above, corner))
