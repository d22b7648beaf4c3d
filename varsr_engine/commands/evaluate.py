"""`varsr eval`: pairs through the engine, or results that exist, through metrics; tables, CSV, JSON and a page."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

import varsr_engine
from varsr_engine.atomic import atomic_writer
from varsr_engine.commands.evaluate_results import Result, engine_results, file_results, load_engine
from varsr_engine.commands.evaluate_tables import print_tables, say_gaps, score_line
from varsr_engine.commands.reporting import Reporter
from varsr_engine.commands.terminal import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    describe,
    error_entry,
    print_json,
    say,
    show_traceback,
    shown,
)
from varsr_engine.engine.device import resolve_device
from varsr_engine.engine.params import EngineConfig, UpscaleParams
from varsr_engine.errors import InvalidImageError, InvalidParamsError, KernelUnavailableError, OutputError
from varsr_engine.evaluation.learned import FID, fid_of_folders, learned_suite
from varsr_engine.evaluation.metrics import Sample, offline_suite
from varsr_engine.evaluation.niqe import NiqeParams
from varsr_engine.evaluation.page import Page
from varsr_engine.evaluation.pairs import FoundPairs, Pair, files_by_pair, find_pairs
from varsr_engine.evaluation.pixels import read_pixels
from varsr_engine.evaluation.scores import Findings, Row, csv_table
from varsr_engine.evaluation.sets import SetFolders
from varsr_engine.evaluation.synthetic import make_pairs

if TYPE_CHECKING:
    import torch

    from varsr_engine.engine.engine import Engine
    from varsr_engine.training.degradation_params import Preset


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRun:
    """What to do, as typed and validated."""

    pairs: Path | None
    params: UpscaleParams
    config: EngineConfig
    model: str | None = None
    outputs: Path | None = None
    reference: Path | None = None
    save: Path | None = None
    niqe_params: Path | None = None
    synthetic: int | None = None
    photographs: Path | None = None
    side: int = 256
    degradation: str = "second_order"
    make_pairs: Path | None = None
    csv: Path | None = None
    html: Path | None = None
    overwrite: bool = False
    as_json: bool = False
    verbose: bool = False
    quiet: bool = False


@dataclass(slots=True)
class Evaluation:
    """A run on its way."""

    run: EvaluationRun
    found: FoundPairs
    findings: Findings
    references: Mapping[Pair, Path]
    reporter: Reporter
    page: Page | None
    sets: SetFolders | None  # where the pictures of whole sets are kept, for FID
    started: float = field(default_factory=time.perf_counter)


def run_evaluation(run: EvaluationRun) -> None:
    """Evaluate everything. Raises VarsrError before anything is scored, later typer.Exit with the exit code."""
    check_options(run)
    niqe_params = None if run.niqe_params is None else NiqeParams.load(run.niqe_params)
    with contextlib.ExitStack() as stack:
        found = find_pairs(run.pairs or made_pairs(run, stack))
        files = other_files(found, run.outputs, "outputs")
        references = other_files(found, run.reference, "reference")
        planned = {} if run.save is None else saved_files(run, found, references)
        reporter = stack.enter_context(Reporter([pair.name for pair in found.pairs], quiet=run.quiet))
        engine = load_engine(run.model, run.config, run.params, reporter) if run.outputs is None else None
        device = resolve_device(run.config.device) if engine is None else engine.device
        findings = make_findings(run, found, engine, device, niqe_params)
        for text in findings.warnings:
            reporter.warn(text)
        fid, reason = fid_of_folders(device, has_truth=found.has_truth)
        sets = None
        if fid is None:
            findings.suite.skipped[FID.key] = reason
        else:
            sets = SetFolders(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="varsr-sets-"))))
        page = None if run.html is None else Page(run.html)
        evaluation = Evaluation(run, found, findings, references, reporter, page, sets)
        if engine is None:
            results = file_results(found.pairs, files)
        else:
            results = engine_results(engine, found.pairs, run.params, reporter, planned, run.overwrite)
        score_all(evaluation, results)
        if fid is not None and sets is not None:
            add_set_scores(findings, sets, fid)
        write_reports(evaluation)
    finish(run, findings)


def made_pairs(run: EvaluationRun, stack: contextlib.ExitStack) -> Path:
    """The folder of --synthetic's pairs: that of --make-pairs, else one that goes with the run."""
    assert run.synthetic is not None
    folder = run.make_pairs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="varsr-pairs-")))
    make_pairs(
        folder,
        run.synthetic,
        photographs=run.photographs,
        side=run.side,
        preset=cast("Preset", run.degradation),
        seed=run.params.seed or 0,
        overwrite=run.overwrite,
    )
    return folder


def other_files(found: FoundPairs, folder: Path | None, what: str) -> dict[Pair, Path]:
    """Files of the pairs in another folder; what does not fit joins the warnings."""
    if folder is None:
        return {}
    files, warnings = files_by_pair(found, folder, what)
    found.warnings += warnings
    return files


def check_options(run: EvaluationRun) -> None:
    """Raise InvalidParamsError for options that exclude each other, OutputError for reports that exist already."""
    if (run.pairs is None) == (run.synthetic is None):
        raise InvalidParamsError("give either the folder PAIRS or --synthetic N")
    if run.synthetic is None and (run.make_pairs or run.photographs):
        raise InvalidParamsError("--make-pairs and --photographs are for --synthetic N")
    if run.outputs is not None and run.save is not None:
        raise InvalidParamsError("--save keeps what the engine makes; with --outputs it does not run")
    page = None if run.html is None else Page(run.html).path
    for path in (run.csv, page):
        if path is not None and os.path.lexists(path) and not run.overwrite:
            raise OutputError(f"{str(path)!r} exists already; replace with --overwrite, or choose another name")


def saved_files(run: EvaluationRun, found: FoundPairs, references: Mapping[Pair, Path]) -> dict[Pair, Path]:
    """Where --save puts each result: SAVE/<name>.png, SAVE/<set>/<name>.png if there are several sets."""
    assert run.save is not None
    inputs = {path.resolve() for pair in found.pairs for path in (pair.low, pair.truth) if path is not None}
    inputs |= {path.resolve() for path in references.values()}
    several = len(found.sets) > 1
    files = {pair: run.save / (pair.set_name if several else "") / f"{pair.name}.png" for pair in found.pairs}
    for path in files.values():
        if path.resolve() in inputs:
            raise InvalidParamsError(
                f"--save: {str(path)!r} is an input and would be written over; choose another folder"
            )
        if os.path.lexists(path) and not run.overwrite:
            raise OutputError(f"{str(path)!r} exists already; replace with --overwrite, or choose another folder")
    return files


def make_findings(
    run: EvaluationRun,
    found: FoundPairs,
    engine: Engine | None,
    device: torch.device,
    niqe_params: NiqeParams | None,
) -> Findings:
    """Empty findings: the metrics that this run has, and the facts about it."""
    suite = offline_suite(
        has_truth=found.has_truth,
        niqe_params=niqe_params,
        has_reference=run.reference is not None,
        seams=engine is not None,
    )
    suite.extend(learned_suite(device, has_truth=found.has_truth))
    kind = "synthetic pairs" if run.photographs is None else "pairs of crops"
    source = f"{kind}: {run.synthetic} of {run.side}×{run.side} pixels, {run.degradation}"
    facts: dict[str, Any] = {
        "what": shown(run.pairs) if run.pairs is not None else source,
        "pairs": len(found.pairs),
        "version": varsr_engine.__version__,
    }
    if engine is None:
        facts["outputs"] = shown(run.outputs or "")
    else:
        defaults = UpscaleParams().to_dict()
        changed = {name: value for name, value in run.params.to_dict().items() if value != defaults[name]}
        facts |= {
            "model": engine.model_id,
            "device": str(engine.device),
            "dtype": str(engine.dtype).removeprefix("torch."),
            "numerics": engine.fingerprint,
            "seed": "random" if run.params.seed is None else run.params.seed,
            "settings": json.dumps(changed) if changed else "the model's",
        }
    for name, path in (("reference", run.reference), ("NIQE parameters", run.niqe_params)):
        if path is not None:
            facts[name] = shown(path)
    return Findings(facts, suite, warnings=found.warnings)


def score_all(evaluation: Evaluation, results: Iterator[Result | Exception]) -> None:
    """A row for each pair; errors and Ctrl-C end up in the findings."""
    run, findings, pairs = evaluation.run, evaluation.findings, evaluation.found.pairs
    try:
        for pair, result in zip(pairs, results, strict=True):
            if isinstance(result, (InvalidParamsError, KernelUnavailableError)) and not findings.rows:
                raise result  # what the model or the device does not take is wrong for every picture
            row = Row(pair.set_name, pair.name, shown(pair.low), None if pair.truth is None else shown(pair.truth))
            try:
                if isinstance(result, Exception):
                    raise result
                score(evaluation, pair, row, result)
            except OutputError:
                raise  # the page or the sets cannot be written: every other picture would say the same
            except Exception as error:
                if run.verbose:
                    show_traceback(error)
                row.error = error_entry(error) | {"message": shown(describe(error, run.verbose))}
            findings.rows.append(row)
            evaluation.reporter.finished(score_line(row, findings.suite.metrics, len(evaluation.found.sets) > 1))
    except KeyboardInterrupt:
        findings.interrupted = True


def score(evaluation: Evaluation, pair: Pair, row: Row, result: Result) -> None:
    """Measure a result, and hand its pictures to the page. Raises what is wrong with its files."""
    truth = None if pair.truth is None else read_pixels(pair.truth)
    other = evaluation.references.get(pair)
    reference = None if other is None else read_pixels(other)
    for name, picture in (("ground truth", truth), ("reference", reference)):
        if picture is not None and picture.shape != result.picture.shape:
            height, width = result.picture.shape[:2]
            raise InvalidImageError(
                f"the result has {width}x{height} pixels, the {name} {picture.shape[1]}x{picture.shape[0]}: "
                "they must be equal; choose --scale accordingly"
            )
    row.size = (result.picture.shape[1], result.picture.shape[0])
    row.seconds, row.seed = result.seconds, result.seed
    row.output = None if result.output is None else shown(result.output)
    row.scores, row.reasons = evaluation.findings.suite.measure(
        Sample(result.picture, truth, reference, result.seam_score)
    )
    if evaluation.sets is not None and truth is not None:
        evaluation.sets.add(pair.set_name, result.picture, truth)
    if evaluation.page is not None:
        views = {
            "input": read_pixels(pair.low),
            "result": result.picture,
            "ground truth": truth,
            "reference": reference,
        }
        evaluation.page.add(row, {name: pixels for name, pixels in views.items() if pixels is not None})


def add_set_scores(findings: Findings, sets: SetFolders, fid: Callable[[Path, Path], float]) -> None:
    """FID of every set; a set for which it fails has its reason among what is skipped."""
    findings.set_metrics.append(FID.label)
    for set_name, (results, truths, count) in sets.folders.items():
        try:
            if count < 2:
                raise InvalidImageError("a set needs at least two pictures")
            findings.of_sets[set_name] = {FID.key: fid(results, truths)}
        except Exception as error:  # of another package
            findings.suite.skipped[f"{FID.key} of {set_name}"] = describe(error, verbose=False)


def write_reports(evaluation: Evaluation) -> None:
    run, findings = evaluation.run, evaluation.findings
    findings.facts["seconds"] = round(time.perf_counter() - evaluation.started, 3)
    if run.csv is not None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(csv_table(findings))
        with atomic_writer(run.csv) as file:
            file.write(text.getvalue().encode("utf-8", "backslashreplace"))
    if evaluation.page is not None:
        evaluation.page.write(findings)


def finish(run: EvaluationRun, findings: Findings) -> None:
    """Tables or JSON, and the exit code."""
    if run.as_json:
        print_json(findings.as_json())
    else:
        print_tables(findings)
    if not run.quiet:
        say_gaps(findings)
        for path in (run.csv, None if run.html is None else Page(run.html).path):
            if path is not None:
                say(f"written: {shown(path)}")
    if findings.failed:
        lines = [f"  {row.set_name}/{row.name}: {row.error['message']}" for row in findings.rows if row.error]
        say("failed:\n" + "\n".join(lines))
    if findings.interrupted:
        say("interrupted: the tables hold what was scored until then")
        raise typer.Exit(EXIT_INTERRUPTED)
    if findings.failed:
        raise typer.Exit(EXIT_FAILED)
