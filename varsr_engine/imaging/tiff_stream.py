"""A TIFF written strip by strip: an image that need not fit in memory.

Source: TIFF 6.0, with deflate (8) and the horizontal predictor (2) of its supplements. The directory is written last,
by Pillow, which knows how to store EXIF in it.
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import IFD
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from varsr_engine.errors import ImageTooLargeError

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
OFFSETS, CHANNELS, ROWS, COUNTS, PLANAR, PREDICTOR, EXTRA, ICC = 273, 277, 278, 279, 284, 317, 338, 34675
STORAGE = {WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC} | {OFFSETS, CHANNELS, ROWS, COUNTS, PLANAR}
STORAGE |= {PREDICTOR, EXTRA, ICC}
DEFLATE, HORIZONTAL, UNASSOCIATED_ALPHA = 8, 2, 2
LONG, UNDEFINED = 4, 7  # types of a tag's values
STRIP_BYTES = 1 << 20
LARGEST = 2**32 - 2**27  # offsets have 32 bits; the rest is for the directory and what deflate cannot shrink
LEVEL = 6


class TiffStream:
    """Writes rows (h, width, channels) uint8 or uint16 to a file that can seek; `close` ends the image."""

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
        self._channels, self._type = channels, np.dtype("<u2" if sixteen_bit else "u1")
        self._icc_profile, self._exif = icc_profile, exif
        line = self._width * channels * self._type.itemsize
        if line * self._height > LARGEST:
            raise ImageTooLargeError(f"TIFF holds at most 4 GB, got {self._width}x{self._height}; use PNG")
        self._strip = max(1, STRIP_BYTES // line)  # rows
        self._start = file.tell()
        self._offsets: list[int] = []
        self._counts: list[int] = []
        self._pending: list[NDArray[np.uint8] | NDArray[np.uint16]] = []
        self._waiting = self._rows = 0
        self._put(b"II*\0" + struct.pack("<I", 0))  # where the directory is, is known at the end

    def write(self, rows: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
        if rows.shape[1:] != (self._width, self._channels) or rows.dtype != self._type:
            raise ValueError(
                f"rows must be (h, {self._width}, {self._channels}) {self._type.name}, got {rows.shape} {rows.dtype}"
            )
        self._pending.append(rows)
        self._waiting += rows.shape[0]
        self._rows += rows.shape[0]
        if self._waiting >= self._strip:
            self._write_strips(last=False)

    def close(self) -> None:
        """Write the end. Raises ValueError if rows are missing or too many."""
        if self._rows != self._height:
            raise ValueError(f"{self._rows} rows were written, the image has {self._height}")
        self._write_strips(last=True)
        if self._file.tell() % 2:
            self._put(b"\0")  # a directory starts at an even offset
        at = self._file.tell() - self._start
        self._put(with_offsets(self._directory().tobytes(at), at, self._offsets))
        end = self._file.tell()
        self._file.seek(self._start + 4)
        self._put(struct.pack("<I", at))
        self._file.seek(end)

    def _write_strips(self, last: bool) -> None:
        rows = np.concatenate([np.empty((0, self._width, self._channels), self._type), *self._pending])
        count = len(rows) if last else len(rows) // self._strip * self._strip
        for top in range(0, count, self._strip):
            strip = rows[top : min(top + self._strip, count)].astype(self._type)
            strip[:, 1:] -= rows[top : top + len(strip), :-1]  # modulo 2^8 or 2^16, as the predictor is
            data = zlib.compress(strip.tobytes(), LEVEL)
            self._offsets.append(self._file.tell() - self._start)
            self._counts.append(len(data))
            self._put(data)
        self._pending, self._waiting = [rows[count:].copy()], len(rows) - count

    def _directory(self) -> ImageFileDirectory_v2:
        tags = ImageFileDirectory_v2(prefix=b"II")
        if self._exif is not None:
            described = Image.Exif()
            described.load(self._exif)
            for tag, value in described.items():
                if tag not in STORAGE:
                    tags[tag] = value
            for directory in (IFD.Exif, IFD.GPSInfo):
                if values := described.get_ifd(directory):
                    tags[directory] = dict(values)
        color = 3 if self._channels >= 3 else 1
        tags[WIDTH], tags[HEIGHT] = self._width, self._height
        tags[BITS] = (8 * self._type.itemsize,) * self._channels
        tags[COMPRESSION], tags[PREDICTOR], tags[PLANAR] = DEFLATE, HORIZONTAL, 1
        tags[PHOTOMETRIC] = 2 if color == 3 else 1  # RGB, or gray whose 0 is black
        tags[CHANNELS], tags[ROWS] = self._channels, self._strip
        tags.tagtype[OFFSETS] = LONG
        tags[OFFSETS], tags[COUNTS] = (0,) * len(self._offsets), tuple(self._counts)
        if self._channels > color:
            tags[EXTRA] = UNASSOCIATED_ALPHA
        if self._icc_profile is not None:
            tags.tagtype[ICC] = UNDEFINED
            tags[ICC] = self._icc_profile
        return tags

    def _put(self, data: bytes) -> None:
        self._file.write(data)


def with_offsets(directory: bytes, at: int, offsets: list[int]) -> bytes:
    """A directory that lies at offset `at`, with the strips' offsets: Pillow's own would count from its end."""
    result = bytearray(directory)
    for entry in range(2, 2 + 12 * struct.unpack_from("<H", directory)[0], 12):
        tag, _, count, value = struct.unpack_from("<HHII", directory, entry)
        if tag == OFFSETS:
            struct.pack_into(f"<{count}I", result, entry + 8 if count == 1 else value - at, *offsets)
    return bytes(result)
