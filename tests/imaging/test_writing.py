"""Writing: what comes back, what is reported as lost, and that no half file is ever left."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from varsr_engine.atomic import atomic_writer
from varsr_engine.errors import ImageTooLargeError, InvalidParamsError, OutputError, UnsupportedFormatError
from varsr_engine.imaging import Picture, encode_picture, losses, picture_from, read_picture, write_picture
from varsr_engine.imaging.samples import to_uint8, to_uint16

from .samples import LIMITS, icc_header, pixels

PICTURE = picture_from(pixels(9, 7), LIMITS)
DEEP_GRAY = picture_from(np.arange(63, dtype=np.uint16).reshape(9, 7) * 1040, LIMITS)


def exif_bytes(text: str = "Artist") -> bytes:
    exif = Image.Exif()
    exif[0x013B] = text
    return exif.tobytes()


def reread(picture: Picture, format: str) -> Picture:
    return read_picture(encode_picture(picture, format), LIMITS)


@pytest.mark.parametrize("extension", ["png", "PNG", "tif", "tiff", "jpg", "jpeg", "webp"])
def test_format_by_extension(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"out.{extension}"
    assert write_picture(path, PICTURE) == []
    picture = read_picture(path, LIMITS)
    assert picture.format == {"jpg": "JPEG", "tif": "TIFF"}.get(extension, extension.upper())
    assert picture.size == (7, 9)
    assert os.listdir(tmp_path) == [path.name]


def test_format_argument_wins_over_the_extension(tmp_path: Path) -> None:
    write_picture(tmp_path / "out.png", PICTURE, format="jpg")
    assert read_picture(tmp_path / "out.png", LIMITS).format == "JPEG"


@pytest.mark.parametrize("format", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_eight_bits_round_trip(format: str, channels: int) -> None:
    picture = picture_from(pixels(9, 7, channels), LIMITS)
    back = reread(picture, format)
    np.testing.assert_array_equal(back.rgb, picture.rgb)
    assert back.gray == (channels == 1)
    if channels == 4:
        np.testing.assert_array_equal(back.alpha, picture.alpha)
    assert losses(picture, format) == []


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_sixteen_bit_gray_round_trip(format: str) -> None:
    back = reread(DEEP_GRAY, format)
    assert back.bit_depth == 16 and back.gray
    np.testing.assert_array_equal(back.rgb, DEEP_GRAY.rgb)
    assert losses(DEEP_GRAY, format) == []


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_gray_with_alpha_round_trip(format: str) -> None:
    alpha = pixels(9, 7, 1, seed=3).astype(np.float32) / np.float32(255)
    picture = dataclasses.replace(picture_from(pixels(9, 7, 1), LIMITS), alpha=alpha)
    back = reread(picture, format)
    assert back.gray
    np.testing.assert_array_equal(back.rgb, picture.rgb)
    np.testing.assert_array_equal(back.alpha, alpha)


def test_all_integers_survive_the_float_samples() -> None:
    eight, sixteen = np.arange(256, dtype=np.uint8), np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(to_uint8(eight.astype(np.float32) / np.float32(255)), eight)
    np.testing.assert_array_equal(to_uint16(sixteen.astype(np.float32) / np.float32(65535)), sixteen)


def test_rounding_and_clamping() -> None:
    values = np.array([-0.1, 0.49 / 255, 0.51 / 255, 254.49 / 255, 254.51 / 255, 1.1], np.float32)
    assert to_uint8(values).tolist() == [0, 0, 1, 254, 255, 255]


def test_a_gray_picture_is_written_as_luma() -> None:
    rgb = picture_from(pixels(9, 7), LIMITS).rgb
    back = reread(Picture(rgb, gray=True), "png")
    expected = np.asarray(Image.fromarray(pixels(9, 7)).convert("L"), np.float32) / 255
    assert back.gray and np.abs(back.rgb[..., 0] - expected).max() <= 1 / 255 + 1e-6


def test_webp_keeps_alpha() -> None:
    picture = picture_from(pixels(9, 7, 4), LIMITS)
    back = reread(picture, "webp")
    np.testing.assert_array_equal(back.alpha, picture.alpha)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff"])
@pytest.mark.parametrize("gray", [False, True])
def test_icc_and_exif_are_kept(format: str, gray: bool) -> None:
    profile = icc_header(b"GRAY" if gray else b"RGB ")
    picture = dataclasses.replace(PICTURE, gray=gray, icc_profile=profile, exif=exif_bytes())
    data = encode_picture(picture, format)
    back = read_picture(data, LIMITS)
    kept = Image.Exif()
    kept.load(back.exif or b"")
    assert kept[0x013B] == "Artist"
    if gray and format == "webp":
        assert Image.open(io.BytesIO(data)).info.get("icc_profile") is None
        assert losses(picture, format) == ["WEBP holds no gray images: the gray ICC profile was dropped"]
    else:
        assert back.icc_profile == profile
        assert losses(picture, format) == []


def test_losses(tmp_path: Path) -> None:
    clear = picture_from(pixels(4, 4, 4), LIMITS)
    assert write_picture(tmp_path / "a.jpg", clear) == ["JPEG has no alpha channel: the transparency was dropped"]
    assert read_picture(tmp_path / "a.jpg", LIMITS).alpha is None
    (lost,) = losses(DEEP_GRAY, "jpeg")
    assert "8 bits" in lost
    (lost,) = losses(picture_from(np.zeros((2, 2, 3), np.uint16), LIMITS), "png")
    assert "colour is written with 8 bits" in lost
    big = dataclasses.replace(PICTURE, exif=exif_bytes("x" * 70_000))
    assert write_picture(tmp_path / "b.jpg", big) == ["the EXIF data is too long for JPEG and was dropped"]
    assert losses(big, "png") == [] and len(reread(big, "png").exif or b"") > 70_000


def test_quality_changes_the_size_and_is_checked() -> None:
    picture = picture_from(pixels(64, 64), LIMITS)
    for format in ("jpeg", "webp"):
        assert len(encode_picture(picture, format, quality=20)) < len(encode_picture(picture, format, quality=95))
    for quality in (0, 101, 9.5, True, "90"):
        with pytest.raises(InvalidParamsError, match="quality"):
            encode_picture(picture, "jpeg", quality=quality)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["out", "out.bmp", "out.gif", "out.txt"])
def test_formats_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedFormatError, match="expected one of png, jpg"):
        write_picture(tmp_path / name, PICTURE)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("format", "side"), [("webp", 16_384), ("jpeg", 65_501)])
def test_sides_beyond_the_format(format: str, side: int) -> None:
    with pytest.raises(ImageTooLargeError, match="use PNG"):
        encode_picture(Picture(np.zeros((1, side, 3), np.float32)), format)


def test_encoder_failure_becomes_an_output_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("encoder error -2")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OutputError, match="cannot encode 7x9 as PNG: encoder error"):
        encode_picture(PICTURE, "png")


# Files


def test_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_picture(path, PICTURE)
    with pytest.raises(OutputError, match="exists already"):
        write_picture(path, DEEP_GRAY)
    assert not read_picture(path, LIMITS).gray
    write_picture(path, DEEP_GRAY, overwrite=True)
    assert read_picture(path, LIMITS).gray


def test_folders_and_files_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    cases = {
        tmp_path / "absent" / "a.png": "the folder does not exist",
        tmp_path / "file" / "a.png": "a file, not a folder",
        tmp_path / "folder.png": "is a folder",
        tmp_path / ("x" * 300 + ".png"): "the name is too long",
    }
    for path, message in cases.items():
        with pytest.raises(OutputError, match=message):
            write_picture(path, PICTURE, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EACCES, "no permission"),
        (errno.EROFS, "read-only"),
        (errno.ENOSPC, "the disk is full"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
@pytest.mark.parametrize("call", ["builtins.open", "os.fsync", "os.replace"])
def test_failures_keep_the_old_file_and_leave_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str, call: str
) -> None:
    path = tmp_path / "a.png"
    write_picture(path, PICTURE)
    before = path.read_bytes()
    original = io.open

    def fail(*args: object, **kwargs: object) -> object:
        if call == "builtins.open" and "xb" not in args:
            return original(*args, **kwargs)  # type: ignore[call-overload]
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(call, fail)
        with pytest.raises(OutputError, match=message) as caught:
            write_picture(path, DEEP_GRAY, overwrite=True)
    assert isinstance(caught.value.__cause__, OSError) and caught.value.details["errno"] == code
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_full_while_writing(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OutputError, match="the disk is full"), atomic_writer(tmp_path / "a.bin") as file:
        os.dup2(full, file.fileno())
        file.write(b"x" * 100_000)
    os.close(full)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError, InvalidParamsError])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "weights.bin"
    with pytest.raises(error), atomic_writer(path) as file:
        file.write(b"half a f")
        file.flush()
        assert len(os.listdir(tmp_path)) == 1 and not path.exists()
        raise error("stop")
    assert os.listdir(tmp_path) == []


def test_atomic_writer_writes_with_the_usual_permissions(tmp_path: Path) -> None:
    with atomic_writer(tmp_path / "a") as file:
        file.write(b"123")
    (tmp_path / "b").write_bytes(b"")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"]
    assert (tmp_path / "a").read_bytes() == b"123" and modes[0] == modes[1]


def test_the_longest_file_name_works(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".png")
    write_picture(path, PICTURE)
    assert path.exists()
