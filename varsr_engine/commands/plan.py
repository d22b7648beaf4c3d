"""Which files `varsr upscale` reads and writes, decided before the model is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from varsr_engine.engine.params import MAX_SEED, UpscaleParams
from varsr_engine.errors import InvalidParamsError, OutputError
from varsr_engine.imaging import ImageJob, alpha_safe, find_images


@dataclass(frozen=True, slots=True)
class Job:
    """One image to read; one file to write, or one for each of several seeds."""

    source: Path
    outputs: tuple[Path, ...]
    seeds: tuple[int, ...] = ()  # one an output, where several samples were asked for
    format_chosen: bool = False  # the user named the output's format


@dataclass(frozen=True, slots=True)
class Plan:
    jobs: list[Job]
    skipped: list[ImageJob]  # outputs that exist already and are kept

    @property
    def claimed(self) -> set[Path]:
        """Files that belong to a job, as its source or its output."""
        return {path.resolve() for job in self.jobs for path in (job.source, *job.outputs)}

    @property
    def files(self) -> list[ImageJob]:
        """Every file that will be written, with its source."""
        return [ImageJob(job.source, output) for job in self.jobs for output in job.outputs]


def default_suffix(params: UpscaleParams) -> str:
    """What is added to the names of outputs that lie beside their sources."""
    if params.target_size is not None:
        return "_{}x{}".format(*params.target_size)
    if params.longest_side is not None:
        return f"_{params.longest_side}px"
    return f"_x{4.0 if params.scale is None else params.scale:g}"


def comparison_path(output: Path) -> Path:
    """Where the comparison of an output lies."""
    return output.with_name(f"{output.stem}_compare.png")


def sample_seeds(first: int, count: int) -> tuple[int, ...]:
    """first, first + 1, ...: the seeds of several samples of one image; none for a single one."""
    if count == 1:
        return ()
    if first + count - 1 > MAX_SEED:
        raise InvalidParamsError(f"seed must be at most 2^63 - {count} for {count} samples, got {first}")
    return tuple(range(first, first + count))


def make_plan(
    inputs: Sequence[str],
    output: str | None,
    *,
    recursive: bool,
    suffix: str,
    ext: str,
    seeds: tuple[int, ...],
    skip_existing: bool,
    overwrite: bool,
    compare: bool = False,
) -> Plan:
    """Sources and destinations. Raises InvalidParamsError, UnsupportedFormatError, or OutputError if a file exists.

    compare: a comparison will lie beside each output, and must not exist either.
    """
    if skip_existing and overwrite:
        raise InvalidParamsError("--skip-existing and --overwrite exclude each other; choose one")
    folders = [text for text in inputs if os.path.isdir(text)]
    if output is None and folders:
        raise InvalidParamsError(f"the folder {folders[0]!r} needs an output folder: add -o FOLDER")
    found = find_images(inputs, output, recursive=recursive, suffix=suffix, ext=ext, overwrite=True)
    sources = {job.source.resolve() for job in found}
    plan = Plan([], [])
    for source, destination in found:
        wanted = [(seed, destination.with_stem(f"{destination.stem}_seed{seed}")) for seed in seeds]
        wanted = wanted or [(0, destination)]
        kept = [(seed, path) for seed, path in wanted if skip_existing and os.path.lexists(path)]
        missing = [item for item in wanted if item not in kept]
        for _, path in missing:
            if path.resolve() in sources:
                raise InvalidParamsError(f"{str(path)!r} is an input and would be written over; choose another folder")
        plan.skipped.extend(ImageJob(source, path) for _, path in kept)
        if missing:
            chosen = ext != "auto" or (output is not None and destination == Path(output))
            missing_seeds, paths = zip(*missing, strict=True)
            plan.jobs.append(Job(source, paths, missing_seeds if seeds else (), chosen))
    written = [path for _, path in plan.files]
    if compare:
        written += [comparison_path(path) for path in written]
        for path in written:
            if path.resolve() in sources:
                raise InvalidParamsError(f"{str(path)!r} is an input and would be written over; choose another folder")
    existing = [] if overwrite else [path for path in written if os.path.lexists(path)]
    if existing:
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise OutputError(
            f"{str(existing[0])!r}{more} exists already; replace with --overwrite, or keep with --skip-existing"
        )
    return plan


def final_output(job: Job, path: Path, has_alpha: bool, claimed: set[Path]) -> Path:
    """Where a picture goes: where planned, but to .png if it has alpha and the format, which nobody chose, has none."""
    if job.format_chosen or not has_alpha:
        return path
    safe = alpha_safe(path)
    if safe != path and safe.resolve() in claimed:
        raise OutputError(f"its transparency needs a PNG, but {str(safe)!r} is another image's file; use --ext png")
    return safe
