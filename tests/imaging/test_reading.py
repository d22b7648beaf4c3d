"""Reading: what decodes to what, and every way in which an input is refused."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from varsr_engine.errors import (
    ImageTooLargeError,
    InvalidImageError,
    PayloadTooLargeError,
    ResourceExhaustedError,
    UnsupportedFormatError,
)
from varsr_engine.imaging import ReadLimits, picture_from, read_picture

from .samples import LIMITS, cmyk_profile, encode, icc_header, pixels, png, png_chunk

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def unit(samples: np.ndarray) -> np.ndarray:
    return samples.astype(np.float32) / np.float32(255)


# What decodes


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_lossless_rgb_is_exact(format: str) -> None:
    source = pixels(7, 5)
    picture = read_picture(encode(source, format), LIMITS)
    np.testing.assert_array_equal(picture.rgb, unit(source))
    assert picture.rgb.dtype == np.float32 and picture.rgb.flags.c_contiguous
    assert (picture.size, picture.width, picture.height) == ((5, 7), 5, 7)
    assert (picture.format, picture.bit_depth, picture.gray, picture.alpha) == (format, 8, False, None)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_equal_pillows_decoding(format: str) -> None:
    data = encode(pixels(16, 24), format)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    picture = read_picture(data, LIMITS)
    np.testing.assert_array_equal(picture.rgb, unit(expected))
    assert picture.format == format


def test_path_and_str_and_bytes_agree(tmp_path: Path) -> None:
    path = tmp_path / "ä b.png"
    path.write_bytes(encode(pixels(4, 6), "PNG"))
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(picture_from(source, LIMITS).rgb, unit(pixels(4, 6)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(orientation: int, format: str) -> None:
    source = pixels(4, 6)
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Maker"
    options = {"lossless": True} if format == "WEBP" else {}
    picture = read_picture(encode(source, format, exif=exif.tobytes(), **options), LIMITS)
    turns = {
        1: source,
        2: source[:, ::-1],
        3: source[::-1, ::-1],
        4: source[::-1],
        5: source.transpose(1, 0, 2),
        6: source.transpose(1, 0, 2)[:, ::-1],
        7: source.transpose(1, 0, 2)[::-1, ::-1],
        8: source.transpose(1, 0, 2)[::-1],
    }
    np.testing.assert_array_equal(picture.rgb, unit(turns[orientation]))
    assert picture.exif is not None and picture.exif.startswith(b"Exif\0\0")
    kept = Image.Exif()
    kept.load(picture.exif)
    assert kept.get(0x0112, 1) == 1
    assert kept[0x010F] == "Maker"


def test_upright_exif_is_kept_to_the_byte_and_a_lone_orientation_leaves_none() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    assert read_picture(encode(pixels(4, 4), "JPEG", exif=exif.tobytes()), LIMITS).exif == exif.tobytes()
    lone = Image.Exif()
    lone[0x0112] = 6
    assert read_picture(encode(pixels(4, 4), "JPEG", exif=lone.tobytes()), LIMITS).exif is None


def test_exif_of_a_tiff_describes_and_carries_no_storage_tags() -> None:
    exif = Image.Exif()
    exif[0x013B] = "Artist"
    picture = read_picture(encode(pixels(4, 6), "TIFF", exif=exif.tobytes()), LIMITS)
    kept = Image.Exif()
    kept.load(picture.exif or b"")
    assert dict(kept) == {0x013B: "Artist"}


@pytest.mark.filterwarnings("ignore")  # Pillow comments on what it meets
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_broken_exif_does_not_refuse_the_picture(exif: bytes) -> None:
    picture = read_picture(encode(pixels(4, 4), "JPEG", exif=exif), LIMITS)
    assert picture.size == (4, 4)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_exact(mode: str) -> None:
    samples = pixels(5, 6, len(mode))
    picture = read_picture(encode(samples, "PNG"), LIMITS)
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha, unit(samples[..., -1]))
    np.testing.assert_array_equal(picture.rgb[..., 0], unit(samples[..., 0]))
    assert picture.gray == (mode == "LA")


def test_palette_with_and_without_transparency() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putdata([0, 1])
    plain = read_picture(encode(image, "PNG"), LIMITS)
    np.testing.assert_array_equal(plain.rgb, [[[1, 0, 0], [0, 1, 0]]])
    assert plain.alpha is None and not plain.gray
    clear = read_picture(encode(image, "PNG", transparency=bytes([0, 128])), LIMITS)
    assert clear.alpha is not None
    np.testing.assert_array_equal(clear.alpha, unit(np.array([[0, 128]])))
    np.testing.assert_array_equal(clear.rgb, plain.rgb)
    one = read_picture(encode(image, "GIF", transparency=1), LIMITS)
    assert one.alpha is not None and one.alpha.tolist() == [[1, 0]]


def test_color_key_becomes_alpha() -> None:
    gray = read_picture(encode(np.array([[7, 9]], np.uint8), "PNG", transparency=7), LIMITS)
    assert gray.gray and gray.alpha is not None and gray.alpha.tolist() == [[0, 1]]
    samples = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    color = read_picture(encode(samples, "PNG", transparency=(4, 5, 6)), LIMITS)
    assert color.alpha is not None and color.alpha.tolist() == [[1, 0]]
    key = png_chunk(b"tRNS", struct.pack(">H", 300))
    deep = read_picture(png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 300, 301), key), LIMITS)
    assert deep.alpha is not None and deep.alpha.tolist() == [[0, 1]]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bit_gray(format: str) -> None:
    samples = np.array([[0, 300, 65535], [1, 2, 40000]], np.uint16)
    image = Image.frombytes("I;16", (3, 2), samples.astype("<u2").tobytes())
    picture = read_picture(encode(image, format), LIMITS)
    assert (picture.bit_depth, picture.gray) == (16, True)
    np.testing.assert_array_equal(picture.rgb[..., 2], samples.astype(np.float32) / np.float32(65535))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_deep_gray_pillow_modes(mode: str) -> None:
    samples = np.array([[0, 256, 65535]], {"I;16": "<u2", "I;16B": ">u2", "I": "=i4"}[mode])
    image = Image.frombytes(mode, (3, 1), samples.tobytes())
    picture = picture_from(image, LIMITS)
    np.testing.assert_allclose(picture.rgb[0, :, 0], [0, 256 / 65535, 1], rtol=1e-6)
    assert picture.bit_depth == 16


def test_float_mode_is_taken_as_unit_range() -> None:
    image = Image.fromarray(np.array([[0, 0.25, 1.0005]], np.float32))
    picture = read_picture(encode(image, "TIFF"), LIMITS)
    np.testing.assert_array_equal(picture.rgb[0, :, 0], np.array([0, 0.25, 1], np.float32))
    assert (picture.bit_depth, picture.gray) == (16, True)


def test_sixteen_bit_color_png_has_its_high_bytes() -> None:
    raw = b"\0" + struct.pack(">6H", 0, 65535, 0x0180, 0x7F00, 0x80FF, 0x1234)
    picture = read_picture(png(2, 1, 16, 2, raw), LIMITS)
    assert picture.bit_depth == 8
    np.testing.assert_array_equal(picture.rgb, unit(np.array([[[0, 255, 1], [0x7F, 0x80, 0x12]]])))


def test_bilevel() -> None:
    image = Image.new("1", (3, 1))
    image.putpixel((1, 0), 1)
    picture = read_picture(encode(image, "PNG"), LIMITS)
    assert picture.gray and picture.rgb[0, :, 0].tolist() == [0, 1, 0]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "HSV", "RGBX", "RGBa", "La", "PA"])
def test_other_pillow_modes_convert(mode: str) -> None:
    image = Image.new(mode, (3, 2))
    picture = picture_from(image, LIMITS)
    assert picture.rgb.shape == (2, 3, 3) and picture.bit_depth == 8
    assert (picture.alpha is not None) == (mode in ("RGBa", "La", "PA"))


def test_cmyk_jpeg_without_profile_uses_the_plain_formula() -> None:
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    picture = read_picture(encode(image, "JPEG", quality=100), LIMITS)
    np.testing.assert_allclose(picture.rgb[4, 4], [0, 1, 1], atol=0.02)
    assert picture.format == "JPEG" and picture.icc_profile is None


def test_cmyk_profile_is_applied_and_dropped() -> None:
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    picture = read_picture(encode(image, "JPEG", quality=100, icc_profile=cmyk_profile()), LIMITS)
    # The profile calls cyan mid-gray; the plain formula would call it (0, 1, 1).
    np.testing.assert_allclose(picture.rgb[4, 4], [119 / 255] * 3, atol=0.03)
    assert picture.icc_profile is None


def test_unusable_cmyk_profile_falls_back() -> None:
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    picture = read_picture(encode(image, "JPEG", quality=100, icc_profile=icc_header(b"CMYK")), LIMITS)
    np.testing.assert_allclose(picture.rgb[4, 4], [0, 1, 1], atol=0.02)
    assert picture.icc_profile is None


def test_a_profile_that_pillow_gave_up_on() -> None:
    image = Image.new("CMYK", (8, 8))
    image.info["icc_profile"] = None  # what Pillow leaves for an incomplete profile
    assert picture_from(image, LIMITS).icc_profile is None


@pytest.mark.parametrize(
    ("channels", "profile", "kept"),
    [
        (3, SRGB, True),
        (1, icc_header(b"GRAY"), True),
        (1, SRGB, False),
        (3, icc_header(b"GRAY"), False),
        (3, b"no profile", False),
        (3, icc_header(b"RGB ", 1024 * 1024 + 1), False),
    ],
)
def test_icc_profile_is_kept_only_where_it_fits(channels: int, profile: bytes, kept: bool) -> None:
    data = encode(pixels(4, 4, channels), "TIFF", icc_profile=profile)
    assert read_picture(data, LIMITS).icc_profile == (profile if kept else None)


def test_mpo_photo_reads_as_its_first_picture() -> None:
    first, second = (Image.fromarray(pixels(8, 8, seed=s)) for s in (0, 1))
    data = encode(first, "MPO", save_all=True, append_images=[second])
    picture = read_picture(data, LIMITS)
    assert picture.format == "JPEG" and picture.size == (8, 8)


# Arrays and tensors


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64, ">u2"])
def test_arrays(shape: tuple[int, ...], dtype: type) -> None:
    rng = np.random.default_rng(0)
    kind = np.dtype(dtype)
    top = 1 if kind.kind == "f" else 256**kind.itemsize - 1
    array: np.ndarray = (rng.random(shape) * top).astype(kind)
    picture = picture_from(array, LIMITS)
    planes = array.reshape(4, 6, -1)
    np.testing.assert_allclose(picture.rgb[..., 0], planes[..., 0].astype(np.float64) / top, rtol=1e-6)
    assert picture.rgb.dtype == np.float32 and picture.rgb.shape == (4, 6, 3)
    assert picture.gray == (planes.shape[2] == 1)
    assert (picture.alpha is not None) == (planes.shape[2] == 4)
    assert picture.bit_depth == (8 if dtype == np.uint8 else 16)


def test_array_views_and_the_callers_data() -> None:
    array = pixels(6, 4)
    np.testing.assert_array_equal(picture_from(array[::-1, ::-1], LIMITS).rgb, unit(array[::-1, ::-1]))
    floats = unit(array)
    picture = picture_from(floats, LIMITS)
    picture.rgb[:] = 0
    assert floats.any()


def test_float_rounding_beyond_the_range_is_clamped() -> None:
    picture = picture_from(np.full((2, 2, 3), 1.0009, np.float32), LIMITS)
    assert picture.rgb.max() == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("batched", [False, True])
def test_tensors(dtype: torch.dtype, batched: bool) -> None:
    tensor = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))
    tensor = (tensor * 255).to(dtype) if dtype == torch.uint8 else tensor.to(dtype).requires_grad_()
    picture = picture_from(tensor[None] if batched else tensor, LIMITS)
    expected = tensor.detach().double() / (255 if dtype == torch.uint8 else 1)
    np.testing.assert_allclose(picture.rgb, expected.permute(1, 2, 0).numpy(), rtol=1e-6)
    assert picture.bit_depth == (8 if dtype == torch.uint8 else 16)


def test_importing_and_reading_needs_no_torch() -> None:
    code = (
        "import sys, io; from PIL import Image; from varsr_engine.imaging import *\n"
        "b = io.BytesIO(); Image.new('RGB', (3, 2)).save(b, 'PNG')\n"
        "p = picture_from(b.getvalue(), ReadLimits(10**6, 10**6, 10**4))\n"
        "encode_picture(p, 'png'); assert 'torch' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


# What is refused


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_truncated(format: str, kept: float) -> None:
    data = encode(pixels(64, 64), format)
    with pytest.raises(InvalidImageError):
        read_picture(data[: max(16, int(len(data) * kept))], LIMITS)


def test_wrong_checksum_in_png() -> None:
    data = bytearray(encode(pixels(16, 16), "PNG"))
    data[data.index(b"IHDR") + 15] ^= 0xFF
    with pytest.raises(InvalidImageError):
        read_picture(bytes(data), LIMITS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "head", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x10\0\0\0WEBPVP8 ", b"II*\0", b"GIF89a", b"BM"]
)
def test_signature_followed_by_garbage(head: bytes) -> None:
    with pytest.raises(InvalidImageError):
        read_picture(head + b"nonsense" * 20, LIMITS)


@pytest.mark.parametrize(
    "data", [b"just a text file\n" * 10, b"%PDF-1.7 ....", b"PK\x03\x04" + b"\0" * 60, b"\0" * 100, b"x"]
)
def test_bytes_that_are_no_image(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "text.png"
    path.write_bytes(data)
    with pytest.raises(UnsupportedFormatError, match=r"text\.png.*PNG, JPEG"):
        read_picture(path, LIMITS)


def test_formats_off_the_list_are_refused() -> None:
    for format in ("PPM", "TGA", "ICO"):
        with pytest.raises(UnsupportedFormatError):
            read_picture(encode(pixels(16, 16), format), LIMITS)


def test_empty_file_and_empty_bytes(tmp_path: Path) -> None:
    (tmp_path / "e.png").touch()
    for source in (tmp_path / "e.png", b""):
        with pytest.raises(InvalidImageError, match="empty"):
            read_picture(source, LIMITS)


def test_header_dimensions_are_checked_before_decoding() -> None:
    wide = ReadLimits(max_pixels=1_000_000, max_bytes=10_000, max_side=100_000)
    with pytest.raises(ImageTooLargeError):  # above Pillow's own limit
        read_picture(png(60_000, 60_000, 8, 2, b""), wide)
    with pytest.raises(ImageTooLargeError, match="2000x1000 is 2000000 pixels; at most 1000000"):
        read_picture(png(2000, 1000, 8, 2, b""), wide)
    with pytest.raises(ImageTooLargeError, match="at most 4096 pixels a side"):
        read_picture(png(5000, 1, 8, 2, b""), LIMITS)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_zero_size_header(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImageError):
        read_picture(png(*size, 8, 2, b""), LIMITS)


def test_file_size_is_checked_first(tmp_path: Path) -> None:
    data = encode(pixels(32, 32), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    tight = ReadLimits(max_pixels=10**6, max_bytes=len(data) - 1, max_side=4096)
    for source in (tmp_path / "a.png", data):
        with pytest.raises(PayloadTooLargeError, match="at most"):
            read_picture(source, tight)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animated_or_multi_page(format: str) -> None:
    first, second = (Image.fromarray(pixels(8, 8, seed=s)) for s in (0, 1))
    data = encode(first, format, save_all=True, append_images=[second])
    with pytest.raises(InvalidImageError, match="animated or multi-page"):
        read_picture(data, LIMITS)


def test_absent_folder_pipe_and_bad_names(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    cases = {
        str(tmp_path / "absent.png"): "does not exist",
        str(tmp_path): "is a folder",
        str(tmp_path / "pipe"): "not a regular file",
        str(tmp_path / "file" / "x.png"): "cannot be read",
        "nul\0.png": "not a file name",
    }
    for path, message in cases.items():
        with pytest.raises(InvalidImageError, match=message):
            read_picture(path, LIMITS)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(pixels(4, 4), "PNG"))

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InvalidImageError, match="cannot be read: Permission denied"):
        read_picture(path, LIMITS)


def test_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhaust(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", exhaust)
    with pytest.raises(ResourceExhaustedError):
        read_picture(encode(pixels(4, 4), "BMP"), LIMITS)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 5, 3), np.uint8), "H, W > 0"),
        (np.zeros((5, 0), np.uint8), "H, W > 0"),
        (np.zeros(5, np.uint8), r"\(H, W\)"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"\(H, W\)"),
        (np.zeros((4, 4, 2), np.uint8), "C of 1, 3 or 4"),
        (np.zeros((3, 8, 8), np.uint8), "C of 1, 3 or 4"),
        (np.zeros((4, 4, 3), np.int64), "got int64"),
        (np.zeros((4, 4, 3), bool), "got bool"),
        (np.zeros((4, 4, 3), complex), "got complex128"),
        (np.full((4, 4, 3), None), "got object"),
        (np.full((4, 4, 3), np.nan), "finite"),
        (np.full((4, 4), np.inf, np.float32), "finite"),
        (np.full((4, 4, 3), 255.0), r"\[0, 1\], found \[255, 255\]"),
        (np.full((4, 4, 3), -0.5), r"\[0, 1\]"),
    ],
)
def test_bad_arrays(array: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidImageError, match=message):
        picture_from(array, LIMITS)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(4, 4), r"\[3, H, W\]"),
        (torch.zeros(2, 3, 4, 4), r"\[1, 3, H, W\]"),
        (torch.zeros(4, 4, 3), r"\[3, H, W\]"),
        (torch.zeros(3, 0, 4), "H, W > 0"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), "uint8 or floating point"),
        (torch.full((3, 4, 4), float("nan")), "finite"),
        (torch.full((3, 4, 4), 2.0), r"\[0, 1\]"),
    ],
)
def test_bad_tensors(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(InvalidImageError, match=message):
        picture_from(tensor, LIMITS)


def test_arrays_and_pillow_images_obey_the_limits() -> None:
    for image in (np.zeros((1100, 1000), np.uint8), Image.new("L", (1000, 1100)), torch.zeros(3, 1100, 1000)):
        with pytest.raises(ImageTooLargeError):
            picture_from(image, LIMITS)


def test_bad_pillow_images() -> None:
    with pytest.raises(InvalidImageError, match="> 0"):
        picture_from(Image.new("RGB", (0, 4)), LIMITS)
    with pytest.raises(InvalidImageError, match=r"\[0, 65535\]"):
        picture_from(Image.new("I", (2, 2), 70_000), LIMITS)
    with pytest.raises(InvalidImageError, match="finite"):
        picture_from(Image.fromarray(np.full((2, 2), np.nan, np.float32)), LIMITS)
    with pytest.raises(InvalidImageError, match="rescale"):
        picture_from(Image.new("L", (2, 2), 200).convert("F"), LIMITS)
    data = encode(pixels(64, 64), "PNG")
    lazy = Image.open(io.BytesIO(data[: len(data) // 2]))
    with pytest.raises(InvalidImageError, match="truncated"):
        picture_from(lazy, LIMITS)


@pytest.mark.parametrize("thing", [None, 5, [[1, 2]], object()])
def test_things_that_are_no_image(thing: object) -> None:
    with pytest.raises(InvalidImageError, match="image must be a path"):
        picture_from(thing, LIMITS)  # type: ignore[arg-type]


def test_global_pillow_settings_are_untouched() -> None:
    from PIL import ImageFile

    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    read_picture(encode(pixels(4, 4), "PNG"), LIMITS)
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


@pytest.mark.filterwarnings("ignore")  # Pillow comments on what it meets
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_damaged_bytes_raise_only_our_errors(format: str) -> None:
    rng = np.random.default_rng(0)
    data = np.frombuffer(encode(pixels(12, 12), format), np.uint8)
    for _ in range(150):
        damaged = data.copy()
        where = rng.integers(0, min(len(data), 300), 4)
        damaged[where] = rng.integers(0, 256, 4)
        with contextlib.suppress(InvalidImageError, UnsupportedFormatError, ImageTooLargeError):
            read_picture(damaged.tobytes(), LIMITS)
