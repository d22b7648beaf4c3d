"""Upscaling of folders and object stores with Ray Data, from this machine's processors to a cluster's GPUs.

Rows are names of images. Workers read, upscale and write them, whole or not at all, and answer with a row each: what
fails is a row too, never an exception. Nothing that an output depends on follows from how the work is divided: seeds
are made from names, and every image is computed by itself. A job that is started again does what has no output yet.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from varsr_engine.engine.params import EngineConfig, UpscaleParams
from varsr_engine.errors import InvalidParamsError, UnsupportedFormatError, VarsrError
from varsr_engine.imaging.formats import READABLE_EXTENSIONS, WRITABLE_FORMATS, writable_format
from varsr_engine.integrations.ray_folders import LocalFolder, folder_of

if TYPE_CHECKING:
    from ray.data import Dataset

    from varsr_engine.engine.engine import Engine

Status = Literal["written", "kept", "failed"]

MAX_BLOCK = 16  # images whose rows come back together, while
MAX_BLOCKS = 10_000  # no more than so many blocks are to be kept account of


class Row(TypedDict):
    """What came of one image."""

    name: str  # below the source folder
    output: str  # below the destination
    status: Status  # kept: the output was there already
    seed: int
    seconds: float
    code: str  # of the error; "" if there is none
    message: str


@dataclass(frozen=True)
class DatasetJob:
    """What to do with every image of a folder. Travels to the workers.

    source, destination: paths that all workers see, or URIs such as s3://bucket/prefix.
    model: as of `Engine.from_pretrained`, and to be found on every worker's machine.
    params: their seed is the job's, from which each image's own follows (`seed_of`).
    ext: extension of the outputs; auto keeps the source's where it can be written, else .png.
    threads: images that a worker reads and writes at a time, while one of them has the device.
    """

    source: str
    destination: str
    model: str
    params: UpscaleParams = field(default_factory=UpscaleParams)
    config: EngineConfig = field(default_factory=lambda: EngineConfig(numerics="batch_invariant"))
    ext: str = "auto"
    quality: int = 95
    overwrite: bool = False
    threads: int = 2

    def __post_init__(self) -> None:
        if self.params.seed is None:
            raise InvalidParamsError("seed must be a number: results of a job that is resumed would not fit together")
        if self.ext != "auto" and self.extension not in WRITABLE_FORMATS:
            raise UnsupportedFormatError(f"ext must be auto or one of {', '.join(WRITABLE_FORMATS)}, got {self.ext!r}")
        source, destination = (folder_of(text).root for text in (self.source, self.destination))
        if f"{source}/".startswith(f"{destination}/"):
            raise InvalidParamsError(
                f"{self.source!r} lies in {self.destination!r}, where outputs could replace inputs; choose another one"
            )

    @property
    def extension(self) -> str:
        return "." + self.ext.removeprefix(".").lower()

    def output(self, name: str) -> str:
        """The name of an image's output."""
        path = PurePosixPath(name)
        if self.ext != "auto":
            return str(path.with_suffix(self.extension))
        return name if path.suffix.lower() in WRITABLE_FORMATS else str(path.with_suffix(".png"))


@dataclass(frozen=True)
class Pending:
    """The images of a job that have no output yet, and how many have."""

    names: list[str]
    kept: int
    failed: list[Row]  # for their names


def seed_of(seed: int, name: str) -> int:
    """The seed in [0, 2^63) of one image of a job: the first 63 bits of sha256("SEED/NAME")."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()[:8]) >> 1


def find_pending(job: DatasetJob) -> Pending:
    """List both folders, and join. Raises InvalidParamsError if no images are there, or two have the same output."""
    source, destination = folder_of(job.source), folder_of(job.destination)
    inside = destination.root.removeprefix(f"{source.root}/") + "/"  # where outputs lie among the inputs
    names = [name for name in source.names() if is_image(name) and not name.startswith(inside)]
    if not names:
        raise InvalidParamsError(f"no images found in {job.source!r}")
    taken: dict[str, str] = {}
    for name in names:
        other = taken.setdefault(job.output(name), name)
        if other != name:
            raise InvalidParamsError(
                f"{other!r} and {name!r} would both be written to {job.output(name)!r}; rename one, or use ext auto"
            )
    there = set() if job.overwrite else set(destination.names())
    missing = [name for name in names if job.output(name) not in there]
    unusable = [name for name in missing if not is_unicode(name)]
    reason = InvalidParamsError("its name is not Unicode, which Ray cannot carry; rename it")
    return Pending(
        [name for name in missing if is_unicode(name)],
        len(names) - len(missing),
        [failure(job, name, reason) for name in unusable],
    )


def is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in READABLE_EXTENSIONS


def is_unicode(name: str) -> bool:
    """Whether a file's name is text, rather than bytes that Python escaped."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def failure(job: DatasetJob, name: str, error: Exception, seconds: float = 0.0) -> Row:
    """The row of an image that failed."""
    if isinstance(error, VarsrError):
        return row(job, name, "failed", seconds, error.code, error.message)
    code = "unreadable" if isinstance(error, OSError) else "internal"
    return row(job, name, "failed", seconds, code, f"{type(error).__name__}: {error}")


def row(job: DatasetJob, name: str, status: Status, seconds: float = 0.0, code: str = "", message: str = "") -> Row:
    seed = seed_of(job.params.seed or 0, name)
    output = job.output(name)
    return Row(name=name, output=output, status=status, seed=seed, seconds=seconds, code=code, message=message)


class Upscaler:
    """A worker: an engine, and the threads that read and write for it. Called with a block of names.

    An actor of Ray Data, which calls it as `Upscaler(job)(block)`; needs nothing of Ray itself.
    """

    def __init__(self, job: DatasetJob) -> None:
        self._job = job
        self._source, self._destination = folder_of(job.source), folder_of(job.destination)
        self._threads = ThreadPoolExecutor(job.threads, thread_name_prefix="varsr-dataset")

    @cached_property
    def engine(self) -> Engine:
        """Loaded by the first block: Ray would try a worker whose constructor fails again and again."""
        from varsr_engine.engine.engine import Engine

        return Engine.from_pretrained(self._job.model, config=self._job.config)

    def __call__(self, block: Mapping[str, Iterable[Any]]) -> dict[str, list[Any]]:
        """Rows by column, in the order of block["name"]."""
        names = [str(name) for name in block["name"]]
        try:
            _ = self.engine  # loaded before the threads want it
        except VarsrError as error:
            rows = [failure(self._job, name, error) for name in names]
        else:
            rows = list(self._threads.map(self.upscale, names))
        return {column: [values[column] for values in rows] for column in Row.__annotations__}  # type: ignore[literal-required]

    def upscale(self, name: str) -> Row:
        """One image, from its file to its output."""
        job, started = self._job, time.perf_counter()
        try:
            if not job.overwrite and self._destination.exists(job.output(name)):
                return row(job, name, "kept")  # by an earlier try of this block, whose rows were lost
            self._write(name)
        except Exception as error:
            return failure(job, name, error, round(time.perf_counter() - started, 4))
        return row(job, name, "written", round(time.perf_counter() - started, 4))

    def _write(self, name: str) -> None:
        job, to = self._job, self._destination
        output = job.output(name)
        image = self._source.image(name, job.config.max_input_bytes)
        params = job.params.replace(seed=seed_of(job.params.seed or 0, name))
        if isinstance(to, LocalFolder):
            path = to.path_to_write(output)
            self.engine.upscale_to(image, path, params, quality=job.quality, overwrite=True)
        else:
            to.write(output, self.engine.upscale(image, params).encode(writable_format(output), quality=job.quality))


def block_size(images: int, workers: int) -> int:
    """Images whose rows come back together: few, so that all workers have some to the end; more for millions."""
    return max(1, min(MAX_BLOCK, images // (4 * workers)), math.ceil(images / MAX_BLOCKS))


def dataset(
    job: DatasetJob,
    names: Sequence[str],
    *,
    workers: int,
    num_cpus: float = 1,
    num_gpus: float = 0,
    images_per_block: int | None = None,
) -> Dataset:
    """A lazy Ray dataset with a `Row` an image; its images are upscaled as rows are taken.

    workers: at most; each has num_cpus processors, as many threads, and num_gpus. Ray must have been initialised. A
    worker that dies is replaced, and its block done again but for the outputs that are there. Without GPUs, workers run
    on the CPU.
    """
    import ray.data

    if not num_gpus and job.config.device == "auto":  # a GPU that is there is another's
        job = replace(job, config=replace(job.config, device="cpu"))
    blocks = math.ceil(len(names) / (images_per_block or block_size(len(names), workers)))
    threads = {"env_vars": {"OMP_NUM_THREADS": str(max(1, int(num_cpus)))}}  # of which bits on a CPU depend
    upscaled = ray.data.from_items([{"name": name} for name in names], override_num_blocks=blocks).map_batches(
        Upscaler,
        fn_constructor_args=(job,),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        runtime_env=threads,
    )
    upscaled.context.enable_progress_bars = False  # whoever takes the rows knows better how far it is
    return upscaled
