"""Pillow's modes → float RGB and alpha: one stated rule for each mode."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from varsr_engine.errors import InvalidImageError
from varsr_engine.imaging.metadata import icc_space
from varsr_engine.imaging.picture import FloatArray
from varsr_engine.imaging.samples import gray_to_rgb, to_unit


class Pixels(NamedTuple):
    """rgb (H, W, 3) and alpha (H, W) or None, float32 in [0, 1]; bit_depth 8 or 16; gray: no colour in the source."""

    rgb: FloatArray
    alpha: FloatArray | None
    bit_depth: int
    gray: bool


def pixels_of(image: Image.Image, name: str) -> Pixels:
    """Pixels of a loaded image, by mode.

    1, L, LA, La: gray, sample / 255. I;16 and I: gray, sample / 65535. F: gray, must be in [0, 1].
    RGB, RGBA, RGBa: sample / 255 (Pillow decodes 16-bit colour files to their high 8 bits). P, PA: the palette's
    colours. Transparency of a palette or a colour key becomes alpha. CMYK: to sRGB through its embedded profile, else
    Pillow's plain formula. YCbCr, LAB, HSV: Pillow's formula.
    Raises InvalidImageError for samples that are not finite or outside the mode's range.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_gray(image, name)
    image = _eight_bit(image)
    samples = np.asarray(image, dtype=np.float32) / np.float32(255)
    gray = image.mode in ("L", "LA")
    alpha = np.ascontiguousarray(samples[..., -1]) if image.mode in ("LA", "RGBA") else None
    if image.mode == "L":
        samples = samples[..., None]
    rgb = gray_to_rgb(samples[..., 0]) if gray else np.ascontiguousarray(samples[..., :3])
    return Pixels(rgb, alpha, 8, gray)


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image in mode L, LA, RGB or RGBA."""
    if image.mode == "CMYK":
        return _cmyk_to_rgb(image)
    transparent = image.has_transparency_data
    target = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if transparent:
        target += "A"
    return image if image.mode == target else image.convert(target)


def _cmyk_to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile") or b""
    if icc_space(profile) == b"CMYK":
        try:
            converted = ImageCms.profileToProfile(
                image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError, ImportError):
            converted = None  # An unusable profile: the plain formula still shows the picture.
        if converted is not None:
            return converted
    return image.convert("RGB")


def _deep_gray(image: Image.Image, name: str) -> Pixels:
    samples = np.asarray(image)
    if image.mode == "I":  # 32-bit storage; Pillow and its writers put 16-bit samples there
        low, high = int(samples.min()), int(samples.max())
        if low < 0 or high > 65535:
            raise InvalidImageError(f"{name}: integer samples must be in [0, 65535], found [{low}, {high}]")
        samples = samples.astype(np.uint16)
    key = image.info.get("transparency")
    alpha = (samples != key).astype(np.float32) if isinstance(key, int) else None
    return Pixels(gray_to_rgb(to_unit(samples, name)), alpha, 16, True)
