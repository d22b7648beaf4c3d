"""Small pictures and hand-made files for the imaging tests."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from varsr_engine.imaging import ReadLimits

LIMITS = ReadLimits(max_pixels=1_000_000, max_bytes=4_000_000, max_side=4096)


def pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Random uint8 (H, W, C); (H, W) for one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(image: Image.Image | np.ndarray, format: str, **options: Any) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, color_type: int, raw: bytes, *extra: bytes) -> bytes:
    """A PNG with correct checksums: `raw` holds the filter bytes and samples, `extra` further chunks."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(raw)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body


def icc_header(space: bytes, size: int = 200) -> bytes:
    """The header of an ICC profile of that colour space, and zeros."""
    header = bytearray(size)
    header[0:4] = struct.pack(">I", size)
    header[16:20] = space
    header[36:40] = b"acsp"
    return bytes(header)


def cmyk_profile() -> bytes:
    """A valid CMYK input profile whose lookup table says: black ink is dark, everything else is mid-gray (L* = 50)."""
    identity = bytes(range(256))
    grid = b"".join(bytes((0 if k else 128, 128, 128)) for _ in range(8) for k in (0, 1))
    matrix = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + matrix + identity * 4 + grid + identity * 3
    offset = 128 + 4 + 12
    header = bytearray(icc_header(b"CMYK", 128))
    header[0:4] = struct.pack(">I", offset + len(table))
    header[8:12] = b"\x02\x40\x00\x00"
    header[12:16] = b"prtr"
    header[20:24] = b"Lab "
    header[68:80] = struct.pack(">3i", 63190, 65536, 54061)
    return bytes(header) + struct.pack(">I", 1) + b"A2B0" + struct.pack(">II", offset, len(table)) + table
