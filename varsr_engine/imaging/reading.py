"""The guarded decoder: files, bytes, Pillow images, arrays and tensors → Picture.

Needs no torch. Global Pillow settings are left alone: sizes are checked here, on the header, before decoding.
Above Pillow's own bomb limit (about 179 million pixels) images are refused whatever `limits` allow.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from varsr_engine.errors import (
    ImageTooLargeError,
    InvalidImageError,
    ResourceExhaustedError,
    UnsupportedFormatError,
    VarsrError,
)
from varsr_engine.imaging.arrays import picture_from_array, picture_from_tensor
from varsr_engine.imaging.conversion import pixels_of
from varsr_engine.imaging.formats import READABLE_FORMATS, sniff
from varsr_engine.imaging.metadata import exif_of, icc_of, upright
from varsr_engine.imaging.picture import Picture, ReadLimits

if TYPE_CHECKING:
    import torch

__all__ = ["ImageLike", "Picture", "ReadLimits", "picture_from", "read_picture"]

ImageLike: TypeAlias = Union[str, "os.PathLike[str]", bytes, Image.Image, NDArray[Any], "torch.Tensor"]


def picture_from(image: ImageLike, limits: ReadLimits) -> Picture:
    """Any image that users hand over → Picture.

    image: path, encoded bytes, Pillow image (its current frame), numpy array (see `picture_from_array`), or torch
    tensor (see `picture_from_tensor`). Raises the errors of `read_picture`.
    """
    if isinstance(image, (str, os.PathLike, bytes)):
        return read_picture(image, limits)
    if isinstance(image, Image.Image):
        return _picture_from_pillow(image, limits)
    if isinstance(image, np.ndarray):
        return picture_from_array(image, limits)
    torch = sys.modules.get("torch")  # whoever holds a tensor has imported torch
    if torch is not None and isinstance(image, torch.Tensor):
        return picture_from_tensor(image, limits)
    raise InvalidImageError(
        f"image must be a path, bytes, Pillow image, numpy array or torch tensor, got {type(image).__name__}"
    )


def read_picture(source: str | os.PathLike[str] | bytes, limits: ReadLimits) -> Picture:
    """Decode one still PNG, JPEG, WebP, TIFF, BMP or GIF image, from a file or from its bytes, upright.

    Raises PayloadTooLargeError and ImageTooLargeError before decoding; UnsupportedFormatError if the bytes are no
    known image; InvalidImageError if the file is absent, unreadable or empty, or the image corrupt, animated or
    multi-page; ResourceExhaustedError if memory runs out.
    """
    name = "image" if isinstance(source, bytes) else repr(os.fspath(source))
    data = source if isinstance(source, bytes) else _read_file(source, limits, name)
    limits.check_bytes(len(data), name)
    if not data:
        raise InvalidImageError(f"{name}: the file is empty")
    kind = sniff(data)
    with _decoder_errors(name, kind):
        image = Image.open(io.BytesIO(data), formats=READABLE_FORMATS)
        limits.check_size(*image.size, name)
        # A photo with a second picture behind it (MPO: depth map, preview) is one still image to its owner.
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise InvalidImageError(f"{name}: animated or multi-page {kind}; extract one frame first")
        image.load()
        return _picture_of(image, name)


def _picture_from_pillow(image: Image.Image, limits: ReadLimits) -> Picture:
    name = "Pillow image"
    if 0 in image.size:
        raise InvalidImageError(f"{name} must have a width and height > 0, got {image.size}")
    limits.check_size(*image.size, name)
    with _decoder_errors(name, image.format):
        image.load()
        return _picture_of(image, name)


def _picture_of(image: Image.Image, name: str) -> Picture:
    source_format = "JPEG" if image.format == "MPO" else image.format
    exif = exif_of(image)
    image = upright(image)
    pixels = pixels_of(image, name)
    return Picture(
        rgb=pixels.rgb,
        alpha=pixels.alpha,
        icc_profile=icc_of(image, pixels.gray),
        exif=exif,
        format=source_format,
        bit_depth=pixels.bit_depth,
        gray=pixels.gray,
    )


def _read_file(path: str | os.PathLike[str], limits: ReadLimits, name: str) -> bytes:
    try:
        info = os.stat(path)
        if stat.S_ISDIR(info.st_mode):
            raise InvalidImageError(f"{name} is a folder, expected an image file")
        if not stat.S_ISREG(info.st_mode):
            raise InvalidImageError(f"{name} is not a regular file")  # a pipe or device may never end
        limits.check_bytes(info.st_size, name)
        with open(path, "rb") as file:
            return file.read(limits.max_bytes + 1)  # the file may have grown since
    except VarsrError:
        raise
    except FileNotFoundError:
        raise InvalidImageError(f"{name} does not exist") from None
    except OSError as error:
        raise InvalidImageError(f"{name} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a name with a NUL character
        raise InvalidImageError(f"{name} is not a file name: {error}") from None


@contextlib.contextmanager
def _decoder_errors(name: str, kind: str | None) -> Iterator[None]:
    """Turn whatever Pillow raises into the errors of this project. kind: the format by signature, None if unknown."""
    try:
        yield
    except VarsrError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLargeError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        if kind is None:
            raise UnsupportedFormatError(f"{name}: not an image of type {', '.join(READABLE_FORMATS)}") from error
        raise InvalidImageError(f"{name}: starts like a {kind} image, but its header is corrupt") from error
    except MemoryError as error:
        raise ResourceExhaustedError(f"{name}: not enough memory to decode it") from error
    except Exception as error:  # Decoders raise nearly every type on corrupt data.
        raise InvalidImageError(f"{name}: the {kind or 'image'} data is corrupt or truncated: {error}") from error
