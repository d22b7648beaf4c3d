"""`varsr upscale`: files and folders, with progress, a summary, and JSON for scripts."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer
from PIL import Image

from varsr_engine.commands.plan import (
    Job,
    Plan,
    comparison_path,
    default_suffix,
    final_output,
    make_plan,
    sample_seeds,
)
from varsr_engine.commands.reporting import Reporter
from varsr_engine.commands.terminal import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    describe,
    error_entry,
    human_bytes,
    print_json,
    say,
    show_traceback,
    shown,
)
from varsr_engine.engine.params import EngineConfig, UpscaleParams
from varsr_engine.errors import InvalidParamsError, KernelUnavailableError
from varsr_engine.imaging import create_folders, read_picture, write_picture
from varsr_engine.imaging.comparison import comparison
from varsr_engine.imaging.formats import writable_format
from varsr_engine.imaging.picture_rows import STREAMS
from varsr_engine.packaged import default_model, packaged_model

if TYPE_CHECKING:
    from varsr_engine.engine.engine import Engine
    from varsr_engine.engine.result import UpscaleReport, UpscaleResult

STREAM_ABOVE = 16_000_000  # pixels of an output in PNG or TIFF that is written while it is decoded, by rows


class Written(NamedTuple):
    """An output that is in its file already."""

    report: UpscaleReport
    losses: list[str]


Outcome = list["UpscaleResult"] | Written | Exception


@dataclass(frozen=True, slots=True)
class UpscaleRun:
    """What to do, as typed and validated."""

    inputs: list[str]
    output: str | None
    model: str | None
    params: UpscaleParams
    config: EngineConfig
    num_samples: int
    ext: str
    quality: int
    suffix: str | None
    recursive: bool
    skip_existing: bool
    overwrite: bool
    as_json: bool
    compare: bool
    dry_run: bool
    plan: bool
    verbose: bool
    quiet: bool


@dataclass(slots=True)
class Tally:
    """What came of a run."""

    skipped: int
    entries: list[dict[str, Any]] = field(default_factory=list)  # of --json, one a file
    failed: list[str] = field(default_factory=list)
    interrupted: bool = False
    started: float = field(default_factory=time.perf_counter)

    def add_error(self, source: Path, output: Path, error: BaseException) -> None:
        self.entries.append({"source": shown(source), "output": shown(output), "error": error_entry(error)})

    @property
    def summary(self) -> dict[str, Any]:
        failed = sum("error" in entry for entry in self.entries)
        counts = {"written": len(self.entries) - failed, "failed": failed, "skipped": self.skipped}
        return {**counts, "interrupted": self.interrupted, "seconds": round(time.perf_counter() - self.started, 3)}


def run_upscale(run: UpscaleRun) -> None:
    """Upscale everything. Raises VarsrError before anything is written, later typer.Exit with the exit code."""
    seeds: tuple[int, ...] = ()
    if run.num_samples > 1:
        first = random.SystemRandom().randrange(2**32) if run.params.seed is None else run.params.seed
        seeds = sample_seeds(first, run.num_samples)
    suffix = run.suffix
    if suffix is None:
        suffix = default_suffix(run.params) if run.output is None else ""
    model = default_model(run.model)
    if not run.dry_run:
        packaged_model(model)  # if it is one, it is there: said before any folder is made
    plan = make_plan(
        run.inputs,
        run.output,
        recursive=run.recursive,
        suffix=suffix,
        ext=run.ext,
        seeds=seeds,
        skip_existing=run.skip_existing,
        overwrite=run.overwrite,
        compare=run.compare,
    )
    if run.dry_run:
        return show_plan(plan, run.as_json)
    if run.plan:
        with Reporter([], quiet=run.quiet) as reporter:
            engine = load_engine(model, run.config, reporter)
        return show_needs(engine, plan.jobs, run)
    create_folders(plan.files)
    tally = Tally(len(plan.skipped))
    if plan.jobs:
        with Reporter([job.source.name for job in plan.jobs], quiet=run.quiet) as reporter:
            engine = load_engine(model, run.config, reporter)
            if engine.captures_graphs:
                engine.warmup([run.config.images_per_pass], on_progress=reporter.warming_up)
            process(run, plan, engine, tally, reporter)
    finish(run, tally)


def show_plan(plan: Plan, as_json: bool) -> None:
    """--dry-run: what would be written."""
    if as_json:
        files = [{"source": shown(source), "output": shown(output)} for source, output in plan.files]
        return print_json({"dry_run": True, "results": files, "summary": {"skipped": len(plan.skipped)}})
    for source, output in plan.files:
        typer.echo(f"{shown(source)} -> {shown(output)}")
    for _, output in plan.skipped:
        say(f"skipped, exists already: {shown(output)}")


def show_needs(engine: Engine, jobs: list[Job], run: UpscaleRun) -> None:
    """--plan: what each image takes."""
    engine.warmup([engine.largest_batch])  # its time is what the seconds come from
    plans = []
    for job in jobs:
        with Image.open(job.source) as image:
            plans.append((job, engine.plan(image.size, run.params)))
    if run.as_json:
        entries = [{"source": shown(job.source), **asdict(needs)} for job, needs in plans]
        return print_json({"plan": True, "results": entries})
    for job, needs in plans:
        size = "{}x{}".format(*needs.size)
        time = "" if needs.seconds is None else f"  about {needs.seconds:.0f} s"
        memory = f"{human_bytes(needs.peak_bytes)}, of which weights {human_bytes(needs.weight_bytes)}"
        typer.echo(f"{shown(job.source)}  {size}  {needs.tiles} tiles, {needs.batch} at once{time}  {memory}")


def load_engine(model: str, config: EngineConfig, reporter: Reporter) -> Engine:
    from varsr_engine.engine.engine import Engine

    return Engine.from_pretrained(model, config=config, on_progress=reporter.loading)


def process(run: UpscaleRun, plan: Plan, engine: Engine, tally: Tally, reporter: Reporter) -> None:
    """Upscale and write every job; errors and Ctrl-C end up in the tally."""
    reporter.begin(len(engine.stages(run.params)), 1 if run.num_samples > 1 else run.config.images_per_pass)
    claimed = plan.claimed
    try:
        for job, outcome in zip(plan.jobs, outcomes(engine, plan.jobs, run, reporter), strict=True):
            if isinstance(outcome, (InvalidParamsError, KernelUnavailableError)) and not tally.entries:
                raise outcome  # what the model or the device does not take is wrong for every image
            if isinstance(outcome, Exception):
                lines = [fail(job, job.outputs[0], outcome, run, tally)]
            elif isinstance(outcome, Written):
                lines = [note(job, outcome.report, outcome.losses, job.outputs[0], run, tally, reporter)]
            else:
                pairs = zip(outcome, job.outputs, strict=True)
                lines = [write(job, result, path, claimed, run, tally, reporter) for result, path in pairs]
            reporter.finished("\n".join(lines))
    except KeyboardInterrupt:
        tally.interrupted = True


def outcomes(engine: Engine, jobs: list[Job], run: UpscaleRun, reporter: Reporter) -> Iterator[Outcome]:
    """What came of each job, in order; files are read when their turn comes."""
    observers: dict[str, Any] = {"on_stage": reporter.stage, "on_tiles": reporter.tiles}
    if run.num_samples > 1:
        for job in jobs:
            try:
                yield engine.upscale_samples(job.source, job.seeds, run.params, **observers)
            except Exception as error:
                yield error
        return
    done = 0
    while done < len(jobs):
        if written_by_rows(jobs[done], run):
            yield by_rows(engine, jobs[done], run, observers)
            done += 1
            continue
        whole = itertools.takewhile(lambda job: not written_by_rows(job, run), jobs[done:])
        sources = (job.source for job in whole)
        try:
            for result in engine.upscale_many(sources, run.params, on_error="return", **observers):
                done += 1
                yield result if isinstance(result, Exception) else [result]
        except Exception as error:  # not one of ours, which are returned: a bug, which shall not stop the others
            yield retry(engine, jobs[done], run, reporter) if run.config.images_per_pass > 1 else error
            done += 1


def written_by_rows(job: Job, run: UpscaleRun) -> bool:
    """Whether an output is too large to be held whole for nothing: a PNG or TIFF that nothing else is made from."""
    if run.compare or run.params.tile != "auto" or writable_format(job.outputs[0]) not in STREAMS:
        return False
    try:
        with Image.open(job.source) as image:  # its header
            width, height = run.params.output_size(*image.size)
    except Exception:
        return False  # reading it will say what is wrong
    return width * height > STREAM_ABOVE


def by_rows(engine: Engine, job: Job, run: UpscaleRun, observers: dict[str, Any]) -> Outcome:
    try:
        return Written(*engine.upscale_to(job.source, job.outputs[0], run.params, overwrite=run.overwrite, **observers))
    except Exception as error:
        return error


def retry(engine: Engine, job: Job, run: UpscaleRun, reporter: Reporter) -> Outcome:
    """One image of a batch that failed, by itself: perhaps the fault is another's."""
    try:
        return [engine.upscale(job.source, run.params, on_stage=reporter.stage, on_tiles=reporter.tiles)]
    except Exception as error:
        return error


def fail(job: Job, output: Path, error: Exception, run: UpscaleRun, tally: Tally) -> str:
    """Note a failure; returns the line that says so."""
    if run.verbose:
        show_traceback(error)
    tally.add_error(job.source, output, error)
    message = describe(error, run.verbose).removeprefix(f"{str(job.source)!r}: ")
    tally.failed.append(f"{shown(job.source)}: {shown(message)}")
    return f"failed: {tally.failed[-1]}"


def write(
    job: Job, result: UpscaleResult, path: Path, claimed: set[Path], run: UpscaleRun, tally: Tally, reporter: Reporter
) -> str:
    """Write a result; returns the line that says so, or what went wrong."""
    try:
        path = final_output(job, path, result.picture.alpha is not None, claimed)
        losses = result.save(path, quality=run.quality, overwrite=run.overwrite)
        if run.compare:
            source = read_picture(job.source, run.config.read_limits)
            write_picture(comparison_path(path), comparison(source, result.picture), overwrite=run.overwrite)
    except Exception as error:
        return fail(job, path, error, run, tally)
    return note(job, result, losses, path, run, tally, reporter)


def note(
    job: Job, result: UpscaleReport, losses: list[str], path: Path, run: UpscaleRun, tally: Tally, reporter: Reporter
) -> str:
    """Put what was written on record; returns the line that says so."""
    for text in (*result.warnings, *losses):
        reporter.warn(text)
    stats = result.stats()
    stats["warnings"] += losses
    compared = {"comparison": shown(comparison_path(path))} if run.compare else {}
    tally.entries.append({"source": shown(job.source), "output": shown(path), **compared, **stats})
    seed = f"  seed {result.seed}" if job.seeds or run.params.seed is None else ""
    times = ""
    if run.verbose:
        times = "  (" + ", ".join(f"{stage} {seconds:.3f}" for stage, seconds in result.seconds.items()) + ")"
    size = "{}x{}".format(*result.size)
    if result.tiles > 1:
        size += f"  {result.tiles} tiles"
    line = f"{shown(job.source)} -> {shown(path)}  {size}{seed}  {sum(result.seconds.values()):.2f} s{times}"
    return line + (f"\ncomparison: {shown(comparison_path(path))}" if run.compare else "")


def finish(run: UpscaleRun, tally: Tally) -> None:
    """Summary, JSON and exit code."""
    summary = tally.summary
    if not run.quiet and (len(tally.entries) != 1 or tally.skipped):
        counts = [f"{summary[name]} {name}" for name in ("written", "failed", "skipped")]
        say(", ".join(count for count in counts if not count.startswith("0 ")) or "nothing to do")
    if tally.failed:
        say("failed:\n" + "\n".join(f"  {line}" for line in tally.failed))
    if tally.interrupted:
        say("interrupted: what is finished was kept, no file is half written")
    if run.as_json:
        print_json({"results": tally.entries, "summary": summary})
    if tally.interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    if tally.failed:
        raise typer.Exit(EXIT_FAILED)
