"""Files that are either complete or not there: write beside the target, then rename over it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from varsr_engine.errors import OutputError, VarsrError

_CAUSES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "no permission to write there",
    errno.EPERM: "no permission to write there",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "the folder does not exist",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder",
    errno.ENAMETOOLONG: "the name is too long",
}


def output_error(path: str | os.PathLike[str], error: OSError) -> OutputError:
    """The OutputError that says in words why `path` could not be written."""
    cause = _CAUSES.get(error.errno or 0) or error.strerror or str(error)
    return OutputError(f"cannot write {os.fspath(path)!r}: {cause}", path=os.fspath(path), errno=error.errno)


@contextlib.contextmanager
def atomic_writer(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` only when the block ends without an error.

    The bytes go to a hidden temporary file in the same folder, are flushed to the disk, and replace `path` in one
    step. After any failure, an interrupt included, the temporary file is gone and `path` is as it was.
    Raises OutputError for every OSError, and before the block runs if `path` is a folder, or exists and
    `overwrite` is false.
    """
    target = Path(path)
    if os.path.isdir(target):
        raise OutputError(f"cannot write {str(target)!r}: it is a folder", path=str(target))
    if not overwrite and os.path.lexists(target):
        raise OutputError(f"{str(target)!r} exists already; allow overwriting or choose another name", path=str(target))
    # A short name of its own: the target's name plus a suffix could exceed what the file system allows.
    temporary = target.with_name(f".varsr-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and not isinstance(error, VarsrError):
            raise output_error(target, error) from error
        raise
