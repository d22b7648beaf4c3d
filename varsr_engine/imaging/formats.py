"""Which image formats are read and written, by name, extension and first bytes."""

from __future__ import annotations

import os

from varsr_engine.errors import UnsupportedFormatError

READABLE_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")

WRITABLE_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}

READABLE_EXTENSIONS = frozenset({*WRITABLE_FORMATS, ".bmp", ".gif"})

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II\x2a\x00", "TIFF"),
    (b"MM\x00\x2a", "TIFF"),
    (b"II\x2b\x00", "TIFF"),
    (b"MM\x00\x2b", "TIFF"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
)


def sniff(data: bytes) -> str | None:
    """The readable format whose signature `data` starts with; None if there is none."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((name for signature, name in _SIGNATURES if data.startswith(signature)), None)


def writable_format(path: str | os.PathLike[str], format: str | None = None) -> str:
    """PNG, JPEG, WEBP or TIFF: from `format` ("png", "JPG", ".tif"), else from the extension of `path`.

    Raises UnsupportedFormatError for anything else.
    """
    extension = os.path.splitext(path)[1] if format is None else "." + format.removeprefix(".")
    try:
        return WRITABLE_FORMATS[extension.lower()]
    except KeyError:
        got = f"format {format!r}" if format is not None else f"{os.fspath(path)!r}"
        expected = ", ".join(e.removeprefix(".") for e in WRITABLE_FORMATS)
        raise UnsupportedFormatError(f"cannot write {got}: expected one of {expected}") from None
