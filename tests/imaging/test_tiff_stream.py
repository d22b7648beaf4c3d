"""TIFF strip by strip: Pillow reads what was written, whatever the bands."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.ExifTags import IFD, Base

from varsr_engine.errors import ImageTooLargeError
from varsr_engine.imaging import tiff_stream
from varsr_engine.imaging.tiff_stream import TiffStream


def encoded(pixels: np.ndarray, heights: list[int], **settings: object) -> bytes:
    buffer = io.BytesIO()
    size = pixels.shape[1], pixels.shape[0]
    stream = TiffStream(buffer, size, pixels.shape[2], sixteen_bit=pixels.dtype == np.uint16, **settings)  # type: ignore[arg-type]
    top = 0
    while top < pixels.shape[0]:
        for height in heights:
            if top < pixels.shape[0]:
                stream.write(pixels[top : top + height])
            top += height
    stream.close()
    return buffer.getvalue()


def noise(height: int, width: int, channels: int, dtype: type) -> np.ndarray:
    high = np.iinfo(dtype).max + 1
    return np.random.default_rng(height).integers(0, high, (height, width, channels), dtype=dtype)


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 2, 3, 4]),
    st.lists(st.integers(1, 9), min_size=1),
    st.sampled_from([1, 200, 1 << 20]),
)
@settings(max_examples=60, deadline=None)
def test_eight_bit(height: int, width: int, channels: int, heights: list[int], strip: int) -> None:
    pixels = noise(height, width, channels, np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiff_stream, "STRIP_BYTES", strip)
        data = encoded(pixels, heights)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
        assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)


def test_sixteen_bit_gray() -> None:
    pixels = noise(33, 20, 1, np.uint16)
    with Image.open(io.BytesIO(encoded(pixels, [5]))) as image:
        assert np.array_equal(np.asarray(image), pixels[..., 0])


def test_metadata() -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[Base.ImageDescription], exif[Base.ImageWidth] = "a picture", 9999
    exif[IFD.Exif] = {0x9003: "2026:01:02 03:04:05"}
    pixels = noise(8, 8, 3, np.uint8)
    with Image.open(io.BytesIO(encoded(pixels, [8], icc_profile=icc, exif=b"Exif\0\0" + exif.tobytes()))) as image:
        assert image.info["icc_profile"] == icc and image.size == (8, 8)
        assert image.getexif()[Base.ImageDescription] == "a picture"
        assert image.getexif().get_ifd(IFD.Exif)[0x9003] == "2026:01:02 03:04:05"
        assert np.array_equal(np.asarray(image), pixels)


def test_it_starts_where_the_file_is() -> None:
    buffer = io.BytesIO(b"before")
    buffer.seek(6)
    stream = TiffStream(buffer, (2, 1), 1)
    stream.write(np.full((1, 2, 1), 7, np.uint8))
    stream.close()
    with Image.open(io.BytesIO(buffer.getvalue()[6:])) as image:
        assert np.asarray(image).tolist() == [[7, 7]]


def test_wrong_rows_and_sizes() -> None:
    stream = TiffStream(io.BytesIO(), (4, 3), 3)
    with pytest.raises(ValueError, match=r"rows must be \(h, 4, 3\) uint8"):
        stream.write(np.zeros((1, 5, 3), np.uint8))
    with pytest.raises(ValueError, match=r"rows must be \(h, 4, 3\) uint8"):
        stream.write(np.zeros((1, 4, 3), np.uint16))
    stream.write(np.zeros((2, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="2 rows were written, the image has 3"):
        stream.close()
    with pytest.raises(ImageTooLargeError, match="use PNG"):
        TiffStream(io.BytesIO(), (40_000, 40_000), 3)
