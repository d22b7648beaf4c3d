"""A private folder for results, deleted at the end; those of servers that were killed, at the next server's start."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

PREFIX = "varsr-jobs-"
LOCK = ".lock"
JUST_MADE = 60.0  # seconds in which a folder without a lock may be one that is being made


class JobFolder:
    """A folder that only this user can enter. Its lock tells whether its server lives: whatever ends it frees that."""

    def __init__(self, parent: str | None = None) -> None:
        root = Path(parent or tempfile.gettempdir())
        delete_abandoned(root)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))  # mode 0700
        self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        _try_lock(self._lock)

    def delete(self) -> None:
        """With all that is in it. Again: no effect."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def delete_abandoned(root: Path) -> None:
    """Delete this user's folders whose servers are gone. What cannot be looked at is left alone."""
    if sys.platform == "win32":  # no such locks
        return
    for path in root.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            info = path.lstat()
            if info.st_uid == os.getuid() and path.is_dir() and not path.is_symlink() and _abandoned(path):
                shutil.rmtree(path, ignore_errors=True)


def _abandoned(path: Path) -> bool:
    try:
        lock = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return time.time() - path.stat().st_mtime > JUST_MADE
    try:
        return _try_lock(lock)
    finally:
        os.close(lock)


def _try_lock(file: int) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
