"""Orientation, EXIF and ICC profile of a Pillow image: what is honoured, what is kept, what is dropped."""

from __future__ import annotations

from PIL import Image
from PIL.ExifTags import IFD, Base

MAX_METADATA_BYTES = 1024 * 1024

_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# A TIFF file's own directory serves as its EXIF; only what describes the picture, not its storage, is carried over.
_DESCRIPTIVE = (
    Base.ImageDescription,
    Base.Make,
    Base.Model,
    Base.XResolution,
    Base.YResolution,
    Base.ResolutionUnit,
    Base.Software,
    Base.DateTime,
    Base.Artist,
    Base.HostComputer,
    Base.Copyright,
)


def upright(image: Image.Image) -> Image.Image:
    """The loaded image turned as its EXIF orientation says; itself where there is nothing to turn."""
    # Not ImageOps.exif_transpose: it copies upright images, and fails where the rest of the EXIF cannot be re-encoded.
    try:
        method = _TRANSPOSES.get(image.getexif().get(Base.Orientation, 1))
    except Exception:  # Broken EXIF raises anything; the pixels are good all the same.
        return image
    return image if method is None else image.transpose(method)


def exif_of(image: Image.Image) -> bytes | None:
    """EXIF without orientation, as b"Exif\\0\\0" + TIFF; None if absent, broken or over 1 MiB."""
    try:
        raw = _exif_bytes(image)
    except Exception:  # As above: broken EXIF is dropped, the picture is kept.
        return None
    if not raw or len(raw) > MAX_METADATA_BYTES:
        return None
    return raw if raw.startswith(b"Exif\x00\x00") else b"Exif\x00\x00" + raw


def _exif_bytes(image: Image.Image) -> bytes | None:
    raw = image.info.get("exif")
    if not raw:
        return _descriptive_exif(image.getexif())
    tags = Image.Exif()
    tags.load(raw)
    if tags.get(Base.Orientation, 1) == 1:
        return bytes(raw)  # Unchanged: re-encoding would lose maker notes and thumbnails.
    del tags[Base.Orientation]
    return tags.tobytes() if len(tags) else None


def _descriptive_exif(source: Image.Exif) -> bytes | None:
    kept = Image.Exif()
    for tag in _DESCRIPTIVE:
        if tag in source:
            kept[tag] = source[tag]
    for directory in (IFD.Exif, IFD.GPSInfo):
        values = source.get_ifd(directory)
        if values:
            kept[directory] = dict(values)
    return kept.tobytes() if len(kept) else None


def icc_space(profile: bytes) -> bytes:
    """The colour space that an ICC header declares: b"RGB ", b"GRAY", b"CMYK", …; b"" if it is no profile."""
    is_profile = len(profile) >= 128 and profile[36:40] == b"acsp"
    return profile[16:20] if is_profile else b""


def icc_of(image: Image.Image, gray: bool) -> bytes | None:
    """The embedded profile if it describes the mode that will be written (gray or RGB) and is at most 1 MiB."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or len(profile) > MAX_METADATA_BYTES:
        return None
    return profile if icc_space(profile) == (b"GRAY" if gray else b"RGB ") else None
