"""Where the pictures that `varsr eval` scores come from: the engine, or files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from varsr_engine.commands.reporting import Reporter
from varsr_engine.engine.params import EngineConfig, UpscaleParams
from varsr_engine.errors import InvalidImageError, OutputError
from varsr_engine.evaluation.luminance import Pixels
from varsr_engine.evaluation.pairs import Pair
from varsr_engine.evaluation.pixels import eight_bit, read_pixels
from varsr_engine.imaging import create_folders
from varsr_engine.imaging.files import ImageJob
from varsr_engine.packaged import default_model, packaged_model

if TYPE_CHECKING:
    from varsr_engine.engine.engine import Engine
    from varsr_engine.engine.result import UpscaleResult


class Result(NamedTuple):
    """A picture to score, and what is known of how it was made."""

    picture: Pixels
    seam_score: float | None = None
    seconds: float | None = None
    seed: int | None = None
    output: Path | None = None


def load_engine(model: str | None, config: EngineConfig, params: UpscaleParams, reporter: Reporter) -> Engine:
    """The engine, ready for the first picture. Raises ModelLoadError and its kinds."""
    from varsr_engine.engine.engine import Engine

    model = default_model(model)
    packaged_model(model)  # if it is one, it is there
    engine = Engine.from_pretrained(model, config=config, on_progress=reporter.loading)
    if engine.captures_graphs:
        engine.warmup([config.images_per_pass], on_progress=reporter.warming_up)
    reporter.begin(len(engine.stages(params)), config.images_per_pass)
    return engine


def file_results(pairs: Sequence[Pair], files: Mapping[Pair, Path]) -> Iterator[Result | Exception]:
    """The results that lie in files, or what is wrong with them, in the order of the pairs."""
    for pair in pairs:
        path = files.get(pair)
        if path is None:
            yield InvalidImageError(f"no result of the name {pair.name!r} in --outputs")
            continue
        try:
            yield Result(read_pixels(path), output=path)
        except Exception as error:
            yield error


def engine_results(
    engine: Engine,
    pairs: Sequence[Pair],
    params: UpscaleParams,
    reporter: Reporter,
    planned: Mapping[Pair, Path],
    overwrite: bool,
) -> Iterator[Result | Exception]:
    """What the engine makes of each pair, or its error, in order; written first, where a file is planned."""
    done = 0
    while done < len(pairs):
        sources = (pair.low for pair in pairs[done:])
        observers: dict[str, Any] = {"on_stage": reporter.stage, "on_tiles": reporter.tiles}
        try:
            for outcome in engine.upscale_many(sources, params, on_error="return", **observers):
                pair, done = pairs[done], done + 1
                if isinstance(outcome, Exception):
                    yield outcome
                    continue
                for text in outcome.warnings:
                    reporter.warn(text)
                yield _kept(outcome, planned.get(pair), overwrite)
        except Exception as error:  # not one of ours, which are returned: a bug, which shall not stop the others
            yield error
            done += 1


def _kept(result: UpscaleResult, path: Path | None, overwrite: bool) -> Result | Exception:
    """A result as it is scored, after it was written."""
    try:
        if path is not None:
            create_folders([ImageJob(path, path)])
            result.save(path, overwrite=overwrite)
    except OutputError as error:
        return error
    seconds = round(sum(result.seconds.values()), 4)
    return Result(eight_bit(result.picture), result.seam_score, seconds, result.seed, path)
