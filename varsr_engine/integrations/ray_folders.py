"""Where a dataset's images lie: folders of this machine or of a network, or object stores by their URI.

A folder here is files by name: paths below its root, with slashes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from varsr_engine.atomic import output_error
from varsr_engine.errors import InvalidParamsError, OutputError, PayloadTooLargeError
from varsr_engine.imaging import ImageLike


class Folder(Protocol):
    """Files by name. Survives pickling, so that workers elsewhere open the same one."""

    @property
    def root(self) -> str:
        """The folder's path, the same text for the same folder."""

    def names(self) -> Iterator[str]:
        """Of all files below, hidden ones left out."""

    def exists(self, name: str) -> bool: ...

    def image(self, name: str, max_bytes: int) -> ImageLike:
        """What an engine reads. Raises OSError, PayloadTooLargeError."""


@dataclass(frozen=True)
class LocalFolder:
    """A folder that every worker sees under the same path."""

    root: str

    def names(self) -> Iterator[str]:
        if not os.path.isdir(self.root):
            return
        for parent, folders, files in os.walk(self.root):
            folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
            base = os.path.relpath(parent, self.root)
            prefix = "" if base == "." else base.replace(os.sep, "/") + "/"
            yield from (prefix + file for file in sorted(files) if not file.startswith("."))

    def exists(self, name: str) -> bool:
        return self.path(name).exists()

    def image(self, name: str, max_bytes: int) -> Path:
        return self.path(name)  # the engine checks its size

    def path(self, name: str) -> Path:
        return Path(self.root, name)

    def path_to_write(self, name: str) -> Path:
        """`path`, in a folder that is there. Raises OutputError."""
        path = self.path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(path.parent, error) from error
        return path


@dataclass(frozen=True)
class ObjectFolder:
    """A prefix in an object store, through pyarrow.fs, else through fsspec where that knows the scheme.

    A file appears whole when its upload ends, or not at all: that is the store's own promise.
    """

    uri: str

    @property
    def root(self) -> str:
        return self.uri.rstrip("/")

    def names(self) -> Iterator[str]:
        from pyarrow.fs import FileSelector, FileType

        files, base = self._opened
        for entry in files.get_file_info(FileSelector(base, allow_not_found=True, recursive=True)):
            name = entry.path.removeprefix(base).lstrip("/")
            if entry.type == FileType.File and not any(part.startswith(".") for part in name.split("/")):
                yield name

    def exists(self, name: str) -> bool:
        from pyarrow.fs import FileType

        files, base = self._opened
        return bool(files.get_file_info(f"{base}/{name}").type == FileType.File)

    def image(self, name: str, max_bytes: int) -> bytes:
        files, base = self._opened
        size = files.get_file_info(f"{base}/{name}").size
        if size is not None and size > max_bytes:
            raise PayloadTooLargeError(f"the file has {size} bytes; at most {max_bytes} are allowed")
        with files.open_input_stream(f"{base}/{name}") as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes) -> None:
        """Put a whole file. Raises OutputError."""
        files, base = self._opened
        try:
            files.create_dir(f"{base}/{name}".rpartition("/")[0], recursive=True)
            with files.open_output_stream(f"{base}/{name}") as stream:
                stream.write(data)
        except OSError as error:
            raise OutputError(f"cannot write {self.root}/{name}: {error}") from error

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system, and the prefix's path in it."""
        from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

        try:
            files, base = FileSystem.from_uri(self.uri)
        except ValueError:  # not a scheme of pyarrow's
            import fsspec

            try:
                opened, base = fsspec.core.url_to_fs(self.uri)
            except (ValueError, ImportError) as error:
                raise InvalidParamsError(f"{self.uri!r} cannot be opened: {error}") from None
            files = PyFileSystem(FSSpecHandler(opened))
        return files, base.rstrip("/")

    def __getstate__(self) -> dict[str, str]:
        return {"uri": self.uri}


def folder_of(text: str) -> LocalFolder | ObjectFolder:
    """The folder that a path or a URI names; file:///a/b is the path /a/b."""
    scheme, found, rest = text.partition("://")
    if not found:
        return LocalFolder(os.path.realpath(text))
    return LocalFolder(os.path.realpath(rest)) if scheme == "file" else ObjectFolder(text)
