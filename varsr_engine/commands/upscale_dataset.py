"""`varsr upscale-dataset`: folders and object stores of any size, on Ray."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import typer

from varsr_engine.commands.terminal import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    is_interactive,
    print_json,
    say,
    shown,
)
from varsr_engine.errors import (
    CheckpointMismatchError,
    InvalidParamsError,
    KernelUnavailableError,
    ModelLoadError,
    ModelNotFoundError,
    UnsafeCheckpointError,
    VarsrError,
)
from varsr_engine.integrations.ray_data import DatasetJob, Pending, Row, dataset, find_pending

if TYPE_CHECKING:
    from rich.progress import Progress

LOCAL_STORE = 200_000_000  # bytes of shared memory of a cluster of one's own: rows are names, not pictures
LINE_SECONDS = 10.0  # between lines of progress where there is no terminal
# Errors that say nothing of an image, and would come of every one.
WRONG_FOR_ALL: dict[str, type[VarsrError]] = {
    kind.code: kind
    for kind in (
        InvalidParamsError,
        KernelUnavailableError,
        ModelLoadError,
        ModelNotFoundError,
        UnsafeCheckpointError,
        CheckpointMismatchError,
    )
}


@dataclass(frozen=True, slots=True)
class DatasetRun:
    """What to do, and on what. workers, num_cpus, num_gpus None: what the cluster has."""

    job: DatasetJob
    ray_address: str | None
    workers: int | None
    num_cpus: float | None
    num_gpus: float | None
    as_json: bool
    quiet: bool


@dataclass(slots=True)
class Tally:
    """What came of a run so far."""

    total: int
    kept: int
    written: int = 0
    failed: list[Row] = field(default_factory=list)
    interrupted: bool = False
    started: float = field(default_factory=time.perf_counter)

    @property
    def done(self) -> int:
        return self.written + len(self.failed)

    @property
    def summary(self) -> dict[str, Any]:
        counts = {"written": self.written, "failed": len(self.failed), "skipped": self.kept}
        return {**counts, "interrupted": self.interrupted, "seconds": round(time.perf_counter() - self.started, 3)}


def run_upscale_dataset(run: DatasetRun) -> None:
    """Upscale what has no output yet. Raises VarsrError before anything is written, later typer.Exit."""
    require_ray()
    pending = find_pending(run.job)
    tally = Tally(len(pending.names) + len(pending.failed), pending.kept)
    for row in pending.failed:
        fail(row, tally, run.quiet)
    if pending.names:
        try:
            with cluster(run.ray_address):
                take(run, pending, tally)
        except KeyboardInterrupt:
            tally.interrupted = True
    finish(run, tally)


def require_ray() -> None:
    """Raise InvalidParamsError where Ray is not installed."""
    try:
        import ray.data  # noqa: F401
    except ModuleNotFoundError as error:
        raise InvalidParamsError(
            f"varsr upscale-dataset needs {error.name}: pip install 'varsr-engine[ray]' (varsr upscale does without)"
        ) from None


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connected to the cluster at an address; None: to one of this machine, which ends with the block.

    What Ray prints within it goes to stderr: stdout is the command's own, for --json.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    # A cluster of one's own inherits it: Ray would send statistics of its use to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own: dict[str, Any] = {} if address else {"include_dashboard": False, "object_store_memory": LOCAL_STORE}
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
        except Exception as error:  # Ray has no kind of its own for what goes wrong here
            raise VarsrError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
        try:
            yield
        finally:
            ray.shutdown()


def take(run: DatasetRun, pending: Pending, tally: Tally) -> None:
    """Run the job, row by row."""
    import ray
    from ray.exceptions import RayError

    have = ray.cluster_resources()
    num_gpus = run.num_gpus if run.num_gpus is not None else min(1.0, have.get("GPU", 0.0))
    num_cpus = run.num_cpus if run.num_cpus is not None else 1.0
    fit = have.get("GPU", 0) / num_gpus if num_gpus else have.get("CPU", 1) / num_cpus
    workers = run.workers or max(1, int(fit))
    if not run.quiet:
        on = f"{num_gpus:g} GPU" if num_gpus else f"{num_cpus:g} CPU"
        say(f"{len(pending.names)} images, {pending.kept} done before; up to {workers} workers of {on} each")
    rows = dataset(run.job, pending.names, workers=workers, num_cpus=num_cpus, num_gpus=num_gpus).iter_rows()
    try:
        with Bar(tally, quiet=run.quiet) as bar:
            count(cast("Iterable[Row]", rows), tally, bar, run.quiet)
    except RayError as error:
        raise VarsrError(f"the job ended on Ray: {type(error).__name__}: {str(error).partition(chr(10))[0]}") from error


def count(rows: Iterable[Row], tally: Tally, bar: Bar, quiet: bool) -> None:
    """Take the rows as they come. Raises the first's error if it is none of an image."""
    for row in rows:
        if row["status"] != "failed":
            tally.written += 1
        elif row["code"] in WRONG_FOR_ALL and not tally.written:
            raise WRONG_FOR_ALL[row["code"]](row["message"])
        else:
            fail(row, tally, quiet, bar)
        bar.show()


def fail(row: Row, tally: Tally, quiet: bool, bar: Bar | None = None) -> None:
    tally.failed.append(row)
    if not quiet:
        (bar.say if bar else say)(f"failed: {shown(row['name'])}: {shown(row['message'])}")


class Bar:
    """Progress on stderr: a bar in a terminal, else a line now and then. quiet: nothing."""

    def __init__(self, tally: Tally, *, quiet: bool) -> None:
        self._tally, self._quiet = tally, quiet
        self._said = time.perf_counter()
        self._bar: Progress | None = None
        if is_interactive() and not quiet:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

            columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("images", total=tally.total)

    def __enter__(self) -> Bar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self) -> None:
        """The tally has changed."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._tally.done)
        elif not self._quiet and time.perf_counter() - self._said >= LINE_SECONDS:
            self._said = time.perf_counter()
            say(f"{self._tally.done} of {self._tally.total}")

    def say(self, text: str) -> None:
        """A line, above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            say(text)


def finish(run: DatasetRun, tally: Tally) -> None:
    """Summary, JSON and exit code."""
    summary = tally.summary
    if not run.quiet:
        counts = [f"{summary[name]} {name}" for name in ("written", "failed", "skipped")]
        say(", ".join(count for count in counts if not count.startswith("0 ")) or "nothing to do")
    if tally.interrupted:
        say("interrupted: what is finished was kept, no file is half written; the same command goes on")
    if run.as_json:
        print_json({"failed": tally.failed, "summary": summary})
    if tally.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if tally.failed:
        raise typer.Exit(EXIT_FAILED)
