"""Command-line inputs (files, folders, patterns) → pairs of source and destination."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from varsr_engine.atomic import output_error
from varsr_engine.errors import InvalidParamsError, OutputError, UnsupportedFormatError
from varsr_engine.imaging.formats import READABLE_EXTENSIONS, WRITABLE_FORMATS, writable_format


class ImageJob(NamedTuple):
    """One image to read and the file to write."""

    source: Path
    destination: Path


class _Found(NamedTuple):
    source: Path
    base: Path  # the part of the source's path that is not mirrored in the output folder
    explicit: bool  # named by the user, rather than found in a folder or by a pattern


def find_images(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    recursive: bool = False,
    suffix: str = "",
    ext: str = "auto",
    skip_existing: bool = False,
    overwrite: bool = False,
) -> list[ImageJob]:
    """The images that `inputs` name, in the order given (within a folder or pattern: natural order), with destinations.

    inputs: files, folders (`recursive`: with their subfolders), patterns such as "shots/**/*.png".
    output: a file if there is one input, a file; otherwise a folder, in which the trees of the inputs are mirrored;
    None: beside each source. No folder is created here (see `create_folders`).
    suffix: added to the stem (not for an output file). ext: extension of the outputs; auto keeps the source's if it
    can be written, else .png. skip_existing leaves out jobs whose destination exists.
    Hidden files, and what lies in the output folder or is the destination of another job (an earlier run's result),
    are not taken from folders and patterns.

    Raises InvalidParamsError (nothing found, options or names that conflict), UnsupportedFormatError (ext),
    OutputError (a destination exists and neither `overwrite` nor `skip_existing` is set).
    """
    if skip_existing and overwrite:
        raise InvalidParamsError("skip_existing and overwrite exclude each other; choose one")
    if "/" in suffix or os.sep in suffix:
        raise InvalidParamsError(f"suffix must not contain a folder separator, got {suffix!r}")
    if not inputs:
        raise InvalidParamsError("no inputs: give at least one file, folder or pattern")
    extension = _output_extension(ext)
    found = [item for text in inputs for item in _expand(os.fspath(text), recursive)]
    if output is not None and _names_a_file(inputs, found, Path(output)):
        writable_format(output)
        jobs = [ImageJob(found[0].source, Path(output))]
    else:
        found = [item for item in found if item.explicit or not _lies_in_output(item, output)]
        jobs = _resolve([(item, _destination(item, output, suffix, extension)) for item in found])
    if not jobs:
        raise InvalidParamsError(f"no images found in {', '.join(repr(os.fspath(text)) for text in inputs)}")
    _reject_conflicts(jobs)
    if skip_existing:
        return [job for job in jobs if not job.destination.exists()]
    existing = [job.destination for job in jobs if os.path.lexists(job.destination)]
    if existing and not overwrite:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise OutputError(f"{str(existing[0])!r}{more} exists already; overwrite or skip existing files")
    return jobs


def alpha_safe(destination: Path) -> Path:
    """Where to write a picture with alpha: `destination`, as .png if its own format has no alpha channel."""
    return destination.with_suffix(".png") if writable_format(destination) == "JPEG" else destination


def create_folders(jobs: Iterable[ImageJob]) -> None:
    """Create the folders of all destinations. Raises OutputError."""
    for folder in {job.destination.parent for job in jobs}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(folder, error) from error


def _output_extension(ext: str) -> str | None:
    """`ext` as ".png"; None for auto."""
    if ext == "auto":
        return None
    extension = "." + ext.removeprefix(".")
    if extension.lower() not in WRITABLE_FORMATS:
        raise UnsupportedFormatError(f"ext must be auto or one of {', '.join(WRITABLE_FORMATS)}, got {ext!r}")
    return extension


def _expand(text: str, recursive: bool) -> list[_Found]:
    path = Path(text)
    if path.is_dir():
        return [_Found(p, path, False) for p in sorted(_walk(path, recursive), key=natural_key)]
    if path.exists():
        return [_Found(path, path.parent, True)]
    if not glob.has_magic(text):
        raise InvalidParamsError(f"input {text!r} does not exist")
    matches = [p for p in map(Path, glob.iglob(text, recursive=True)) if _is_image(p)]
    if not matches:
        raise InvalidParamsError(f"pattern {text!r} matches no image")
    fixed = []
    for part in path.parent.parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return [_Found(p, Path(*fixed), False) for p in sorted(matches, key=natural_key)]


def _walk(folder: Path, recursive: bool) -> Iterator[Path]:
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [s for s in subfolders if recursive and not s.startswith(".")]
        yield from (p for p in (Path(parent, n) for n in names) if _is_image(p))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in READABLE_EXTENSIONS and not path.name.startswith(".") and path.is_file()


def natural_key(path: Path) -> list[list[tuple[int, str]]]:
    """Sort key by which frame2 comes before frame10, and a folder's files stay together."""
    return [[(int(t), t) if t.isdecimal() else (-1, t) for t in re.split(r"(\d+)", part) if t] for part in path.parts]


def _names_a_file(inputs: Sequence[str | os.PathLike[str]], found: list[_Found], output: Path) -> bool:
    if output.is_dir() or not output.suffix:
        return False
    if len(inputs) == 1 and len(found) == 1 and found[0].explicit:
        return True
    if output.suffix.lower() in READABLE_EXTENSIONS:
        raise InvalidParamsError(f"several images or a folder need an output folder, got the file {str(output)!r}")
    return False


def _lies_in_output(item: _Found, output: str | os.PathLike[str] | None) -> bool:
    """Whether the source lies in an output folder that is itself inside the input folder."""
    if output is None:
        return False
    folder = Path(output).resolve()
    return item.base.resolve() in folder.parents and folder in item.source.resolve().parents


def _destination(item: _Found, output: str | os.PathLike[str] | None, suffix: str, extension: str | None) -> Path:
    source = item.source
    if extension is None:
        extension = source.suffix if source.suffix.lower() in WRITABLE_FORMATS else ".png"
    folder = source.parent if output is None else Path(output) / source.parent.relative_to(item.base)
    return folder / f"{source.stem}{suffix}{extension}"


def _resolve(pairs: list[tuple[_Found, Path]]) -> list[ImageJob]:
    """Drop repeated inputs, and sources found in folders that are results of an earlier run."""
    destinations = {destination.resolve(): item.source for item, destination in pairs}
    jobs: dict[tuple[Path, Path], ImageJob] = {}
    for item, destination in pairs:
        source = item.source.resolve()
        is_result = destinations.get(source, item.source).resolve() != source
        if is_result and not item.explicit:
            continue
        jobs.setdefault((source, destination.resolve()), ImageJob(item.source, destination))
    return list(jobs.values())


def _reject_conflicts(jobs: list[ImageJob]) -> None:
    sources = {job.source.resolve() for job in jobs}
    taken: dict[Path, Path] = {}
    for source, destination in jobs:
        target = destination.resolve()
        if target in sources:
            raise InvalidParamsError(
                f"{str(source)!r} would be written over the input {str(destination)!r}; "
                "choose another output folder, suffix or extension"
            )
        if target in taken:
            raise InvalidParamsError(
                f"{str(taken[target])!r} and {str(source)!r} would both be written to {str(destination)!r}"
            )
        taken[target] = source
