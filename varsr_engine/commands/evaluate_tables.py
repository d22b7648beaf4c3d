"""What `varsr eval` prints: a line a picture as it is scored, tables at the end, and what was skipped and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from varsr_engine.commands.terminal import say, stdout_console
from varsr_engine.evaluation.metrics import Metric
from varsr_engine.evaluation.scores import Findings, Row, gaps, shown, shown_spread

if TYPE_CHECKING:
    from rich.table import Table

MOST_ROWS = 60  # of pictures in a terminal; more are for --csv, --json and --html


def score_line(row: Row, metrics: Sequence[Metric], several_sets: bool) -> str:
    """One picture, as it is done."""
    name = f"{row.set_name}/{row.name}" if several_sets else row.name
    if row.error is not None:
        return f"failed: {name}: {row.error['message']}"
    scores = [f"{m.heading} {shown(value, m.digits)}" for m in metrics if (value := row.scores.get(m.key)) is not None]
    return "  ".join([name, *scores, *([] if row.seconds is None else [f"{row.seconds:.2f} s"])])


def print_tables(findings: Findings) -> None:
    """Pictures, if they are few, then means, then what the columns are."""
    metrics, console = findings.suite.metrics, stdout_console()
    scored = [row for row in findings.rows if row.error is None]
    if 0 < len(scored) <= MOST_ROWS:
        table = _table("pictures", ("set", "picture"), [*(m.title for m in metrics), "seconds"])
        for row in scored:
            cells = [shown(row.scores.get(m.key), m.digits) for m in metrics]
            table.add_row(*map(_literal, (row.set_name, row.name, *cells, shown(row.seconds, 2))))
        console.print(table)
    if summaries := findings.summaries():
        table = _table("mean ± deviation", ("set", "pictures"), [m.title for m in metrics])
        for name, values in summaries.items():
            count = sum(row.error is None for row in findings.rows_of(name))
            cells = [shown_spread(values.get(m.key), m.digits) for m in metrics]
            table.add_row(*map(_literal, (name, str(count), *cells)))
        console.print(table)
    digits = {metric.key: metric for metric in findings.set_metrics}
    for set_name, scores in findings.of_sets.items():
        line = ", ".join(f"{digits[k].title} {shown(value, digits[k].digits)}" for k, value in scores.items())
        console.print(_literal(f"{set_name}: {line}"))
    for metric in (*metrics, *findings.set_metrics):
        console.print(_literal(f"{metric.heading}: {metric.variant}"))


def say_gaps(findings: Findings) -> None:
    """What was not measured, and why."""
    for what, reason in gaps(findings):
        say(f"skipped: {what}: {reason}")


def _table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(*names, title=title, title_justify="left")
    for number in numbers:
        table.add_column(number, justify="right")
    return table


def _literal(text: str) -> str:
    """Text in which rich sees no markup."""
    from rich.markup import escape

    return escape(text)
