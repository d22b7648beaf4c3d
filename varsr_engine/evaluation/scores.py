"""What an evaluation found: a row a picture, means with their spread a set, and both as JSON types."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from varsr_engine.evaluation.metrics import Label, Suite

ALL = "all"  # the name of the sum of several sets
Number = float | str | None  # of JSON: infinity, of PSNR between equal pictures, is "inf"


@dataclass(slots=True)
class Row:
    """One picture: where it lies, its scores by key, and why some are missing; or what went wrong with it."""

    set_name: str
    name: str
    low: str
    truth: str | None = None
    output: str | None = None
    size: tuple[int, int] | None = None  # (width, height) of the result
    scores: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None  # of the engine
    seed: int | None = None
    error: dict[str, str] | None = None  # code and message


@dataclass(frozen=True, slots=True)
class Spread:
    """A metric over the pictures that have it. deviation: of the sample; None for fewer than two, or infinite ones."""

    mean: float
    deviation: float | None
    least: float
    most: float
    count: int


@dataclass(slots=True)
class Findings:
    """A whole run. facts: what was run, how, on what, as JSON types. of_sets: metrics of whole sets (FID), by set."""

    facts: dict[str, Any]
    suite: Suite
    rows: list[Row] = field(default_factory=list)
    of_sets: dict[str, dict[str, float]] = field(default_factory=dict)
    set_metrics: list[Label] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    interrupted: bool = False

    @property
    def failed(self) -> list[Row]:
        return [row for row in self.rows if row.error is not None]

    @property
    def set_names(self) -> list[str]:
        return list(dict.fromkeys(row.set_name for row in self.rows))

    def rows_of(self, set_name: str) -> list[Row]:
        """The rows of a set; of ALL, every row."""
        return [row for row in self.rows if set_name in (ALL, row.set_name)]

    def summaries(self) -> dict[str, dict[str, Spread]]:
        """Set → metric → spread; ALL too where there are several sets. Metrics that no picture has are left out."""
        names = self.set_names
        return {name: self._summary(name) for name in ([*names, ALL] if len(names) > 1 else names)}

    def _summary(self, set_name: str) -> dict[str, Spread]:
        rows = self.rows_of(set_name)
        spreads = {metric.key: spread(row.scores.get(metric.key) for row in rows) for metric in self.suite.metrics}
        return {key: value for key, value in spreads.items() if value is not None}

    def as_json(self) -> dict[str, Any]:
        """What --json prints."""
        labels: list[Label] = [*self.suite.metrics, *self.set_metrics]
        metrics = [{"key": m.key, "heading": m.heading, "variant": m.variant, "better": m.better} for m in labels]
        return {
            "evaluation": self.facts,
            "metrics": metrics,
            "skipped": self.suite.skipped,
            "results": [row_as_json(row) for row in self.rows],
            "means": {
                name: {key: {k: number(v) for k, v in asdict(value).items()} for key, value in values.items()}
                for name, values in self.summaries().items()
            },
            "sets": self.of_sets,
            "warnings": self.warnings,
            "summary": {
                "scored": len(self.rows) - len(self.failed),
                "failed": len(self.failed),
                "interrupted": self.interrupted,
            },
        }


def gaps(findings: Findings) -> list[tuple[str, str]]:
    """What is not measured, and why: metrics that the run lacks, those of one reason together, then those that some
    pictures lack, with how many and the reason of the first."""
    grouped: dict[str, list[str]] = {}
    for key, reason in findings.suite.skipped.items():
        grouped.setdefault(reason, []).append(key)
    result = [(", ".join(keys), reason) for reason, keys in grouped.items()]
    scored = [row for row in findings.rows if row.error is None]
    for metric in findings.suite.metrics:
        reasons = [row.reasons[metric.key] for row in scored if metric.key in row.reasons]
        if reasons:
            result.append((f"{metric.key} of {len(reasons)} of {len(scored)} pictures", reasons[0]))
    return result


def row_as_json(row: Row) -> dict[str, Any]:
    """A row as JSON types, without what it does not have."""
    entry: dict[str, Any] = {"set": row.set_name, "name": row.name, "low": row.low}
    entry |= {key: value for key in ("truth", "output", "seed", "seconds") if (value := getattr(row, key)) is not None}
    if row.error is not None:
        return {**entry, "error": row.error}
    scores = {key: number(value) for key, value in row.scores.items()}
    return {**entry, "size": list(row.size or ()), "scores": scores, "not_measured": row.reasons}


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean, deviation and range of those that are not None; None where all are."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    finite = all(map(math.isfinite, known))
    deviation = statistics.stdev(known) if finite and len(known) > 1 else None
    return Spread(sum(known) / len(known), deviation, min(known), max(known), len(known))


def number(value: float | None) -> Number:
    """A number as JSON can hold it: infinity as a word."""
    return value if value is None or math.isfinite(value) else str(value)


def shown(value: float | None, digits: int) -> str:
    """A score as text; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def shown_spread(value: Spread | None, digits: int) -> str:
    """mean ± deviation."""
    if value is None:
        return "–"
    return shown(value.mean, digits) + ("" if value.deviation is None else f" ± {value.deviation:.{digits}f}")


def csv_table(findings: Findings) -> Sequence[Sequence[str]]:
    """Rows of a CSV file, a header first, then every picture. Numbers have all their digits."""
    keys = [metric.key for metric in findings.suite.metrics]
    lines = [["set", "name", "low", "truth", "output", "width", "height", *keys]]
    lines[0] += ["seconds", "error", "not_measured"]
    for row in findings.rows:
        size = [str(side) for side in row.size] if row.size is not None else ["", ""]
        scores = ["" if (score := row.scores.get(key)) is None else repr(float(score)) for key in keys]
        seconds = "" if row.seconds is None else repr(row.seconds)
        error = "" if row.error is None else row.error["message"]
        missing = "; ".join(f"{key}: {reason}" for key, reason in (findings.suite.skipped | row.reasons).items())
        names = [row.set_name, row.name, row.low, row.truth or "", row.output or ""]
        lines.append([*names, *size, *scores, seconds, error, missing])
    return lines
