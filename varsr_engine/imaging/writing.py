"""Picture → PNG, JPEG, WebP or TIFF, in memory or atomically to a file.

Samples are floor(x * max + 0.5), clamped. A gray picture is written gray (Rec. 601 luma of its RGB, as Pillow's mode
L), with 16 bits if the source had them, except in WebP (RGB) and JPEG (8 bits). RGB and alpha have 8 bits: Pillow
writes no deeper colour. ICC profile and EXIF are kept where the format holds them. `losses` lists what is not kept.
"""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
from PIL import Image

from varsr_engine.atomic import atomic_writer
from varsr_engine.errors import ImageTooLargeError, InvalidParamsError, OutputError
from varsr_engine.imaging.formats import writable_format
from varsr_engine.imaging.metadata import icc_space
from varsr_engine.imaging.picture import FloatArray, Picture
from varsr_engine.imaging.samples import to_uint8, to_uint16

_MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
_MAX_JPEG_EXIF = 65_533
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def write_picture(
    path: str | os.PathLike[str],
    picture: Picture,
    *,
    format: str | None = None,
    quality: int = 95,
    overwrite: bool = False,
) -> list[str]:
    """Write `picture` to `path`, completely or not at all; the format comes from the extension unless given.

    Returns what the format could not keep, as sentences (empty: nothing was lost). quality: 1 to 100, of JPEG and WebP.
    Raises UnsupportedFormatError, InvalidParamsError (quality), ImageTooLargeError (for the format), OutputError
    (exists and not `overwrite`, no folder, no permission, no space).
    """
    format = writable_format(path, format)
    with atomic_writer(path, overwrite=overwrite) as file:
        file.write(encode_picture(picture, format, quality=quality))
    return losses(picture, format)


def encode_picture(picture: Picture, format: str, *, quality: int = 95) -> bytes:
    """The bytes of `picture` as PNG, JPEG, WEBP or TIFF. Errors as `write_picture`."""
    format = writable_format("", format)
    if isinstance(quality, bool) or not isinstance(quality, int) or not 1 <= quality <= 100:
        raise InvalidParamsError(f"quality must be an integer in [1, 100], got {quality!r}")
    limit = _MAX_SIDE.get(format)
    if limit is not None and max(picture.size) > limit:
        raise ImageTooLargeError(
            f"{format} holds at most {limit} pixels a side, got {picture.width}x{picture.height}; use PNG or TIFF"
        )
    image = pillow_image(picture, format)
    buffer = io.BytesIO()
    try:
        image.save(buffer, format, **_save_options(picture, format, quality))
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot encode {picture.width}x{picture.height} as {format}: {error}") from error
    return buffer.getvalue()


def losses(picture: Picture, format: str) -> list[str]:
    """What `format` cannot keep of `picture`, one sentence each."""
    format = writable_format("", format)
    lost = []
    if picture.alpha is not None and format == "JPEG":
        lost.append("JPEG has no alpha channel: the transparency was dropped")
    if picture.bit_depth == 16 and not sixteen_bit(picture, format):
        lost.append(f"{_describe(picture)} is written with 8 bits a sample to {format}: the source had 16")
    if picture.icc_profile is not None and not _keeps_icc(picture, format):
        lost.append(f"{format} holds no gray images: the gray ICC profile was dropped")
    if picture.exif is not None and not _keeps_exif(picture, format):
        lost.append(f"the EXIF data is too long for {format} and was dropped")
    return lost


def _describe(picture: Picture) -> str:
    return ("gray" if picture.gray else "colour") + (" with alpha" if picture.alpha is not None else "")


def luma(rgb: FloatArray) -> FloatArray:
    """Rec. 601 luma (H, W) of (H, W, 3), as Pillow's mode L."""
    gray: FloatArray = rgb @ _LUMA
    return gray


def sixteen_bit(picture: Picture, format: str) -> bool:
    return picture.bit_depth == 16 and picture.gray and picture.alpha is None and format in ("PNG", "TIFF")


def _keeps_icc(picture: Picture, format: str) -> bool:
    return format != "WEBP" or icc_space(picture.icc_profile or b"") != b"GRAY"


def _keeps_exif(picture: Picture, format: str) -> bool:
    return format != "JPEG" or len(picture.exif or b"") <= _MAX_JPEG_EXIF


def pillow_image(picture: Picture, format: str) -> Image.Image:
    """The picture in the mode and depth that `format` is given."""
    gray = picture.gray and format != "WEBP"
    color = luma(picture.rgb)[..., None] if gray else picture.rgb
    if sixteen_bit(picture, format):
        return Image.frombytes("I;16", picture.size, to_uint16(color).astype("<u2").tobytes())
    samples = to_uint8(color)
    if picture.alpha is not None and format != "JPEG":
        samples = np.concatenate([samples, to_uint8(picture.alpha)[..., None]], axis=2)
    return Image.fromarray(samples[..., 0] if samples.shape[2] == 1 else samples)


def _save_options(picture: Picture, format: str, quality: int) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if picture.icc_profile is not None and _keeps_icc(picture, format):
        options["icc_profile"] = picture.icc_profile
    if picture.exif is not None and _keeps_exif(picture, format):
        options["exif"] = picture.exif
    if format == "JPEG":
        options |= {"quality": quality, "subsampling": "4:4:4"}  # subsampled colour would undo the colour fix
    elif format == "WEBP":
        options |= {"quality": quality}
    elif format == "TIFF":
        options |= {"compression": "tiff_deflate"}
    return options
