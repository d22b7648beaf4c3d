"""PNG row by row: Pillow reads what was written, whatever the bands."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from varsr_engine.imaging import png_stream
from varsr_engine.imaging.png_stream import PngStream


def smooth(height: int, width: int, channels: int, high: int) -> np.ndarray:
    y, x, c = np.mgrid[:height, :width, :channels]
    noise = np.random.default_rng(0).normal(0, 0.01, (height, width, channels))
    return np.clip((0.5 + 0.4 * np.sin(x / 9 + y / 7 + c) + noise) * high, 0, high)


def encoded(pixels: np.ndarray, heights: list[int], **settings: object) -> bytes:
    buffer = io.BytesIO()
    size = pixels.shape[1], pixels.shape[0]
    stream = PngStream(buffer, size, pixels.shape[2], sixteen_bit=pixels.dtype == np.uint16, **settings)  # type: ignore[arg-type]
    top = 0
    while top < pixels.shape[0]:
        for height in heights:
            if top < pixels.shape[0]:
                stream.write(pixels[top : top + height])
            top += height
    stream.close()
    return buffer.getvalue()


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 3, 4]), st.lists(st.integers(1, 9), min_size=1))
@settings(max_examples=60, deadline=None)
def test_eight_bit(height: int, width: int, channels: int, heights: list[int]) -> None:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, channels), dtype=np.uint8)
    with Image.open(io.BytesIO(encoded(pixels, heights))) as image:
        assert image.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
        assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)


def test_sixteen_bit_gray() -> None:
    pixels = smooth(33, 20, 1, 65535).astype(np.uint16)
    with Image.open(io.BytesIO(encoded(pixels, [5]))) as image:
        assert np.array_equal(np.asarray(image), pixels[..., 0])


def test_metadata() -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010E] = "a picture"
    pixels = smooth(8, 8, 3, 255).astype(np.uint8)
    with Image.open(io.BytesIO(encoded(pixels, [8], icc_profile=icc, exif=exif.tobytes()))) as image:
        assert image.info["icc_profile"] == icc
        assert image.getexif()[0x010E] == "a picture"


def test_several_data_chunks_and_a_size_like_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(png_stream, "CHUNK_BYTES", 4096)
    pixels = smooth(200, 300, 3, 255).astype(np.uint8)
    data = encoded(pixels, [64])
    assert data.count(b"IDAT") > 3
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.asarray(image), pixels)
    plain = io.BytesIO()
    Image.fromarray(pixels).save(plain, "PNG")
    assert len(data) <= 1.05 * len(plain.getvalue())


def test_wrong_rows() -> None:
    stream = PngStream(io.BytesIO(), (4, 3), 3)
    with pytest.raises(ValueError, match=r"rows must be \(h, 4, 3\) uint8"):
        stream.write(np.zeros((1, 5, 3), np.uint8))
    with pytest.raises(ValueError, match=r"rows must be \(h, 4, 3\) uint8"):
        stream.write(np.zeros((1, 4, 3), np.uint16))
    stream.write(np.zeros((2, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="2 rows were written, the image has 3"):
        stream.close()
