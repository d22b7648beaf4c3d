"""The table at the end of a session: a block a call, a line a contestant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_suite.timing import spread

HEAD = ("contestant", "checked", "median", "IQR", "rounds", "x eager", "GB/s", "TFLOP/s", "of ceiling")
WIDTHS = (26, 8, 11, 11, 6, 21, 8, 8, 16)


@dataclass(frozen=True)
class Row:
    """seconds, info: as in pytest-benchmark's JSON; note: in their place, why there are none."""

    call: str
    contestant: str
    seconds: tuple[float, ...] = ()
    info: dict[str, Any] | None = None
    note: str = ""

    def line(self, automatic: bool = False) -> str:
        name = f"{self.contestant}{' *' if automatic else ''}"
        if self.info is None:
            return f"{name:<{WIDTHS[0]}} {self.note}"
        times, ratio = spread(self.seconds), self.info.get("times_eager")
        cells = (
            name,
            "ok" if self.info["whole_op"] else "part",
            duration(times["median"]),
            duration(times["q3"] - times["q1"]),
            str(times["n"]),
            f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})" if ratio else "-",
            figure(self.info.get("gb_per_s")),
            figure(self.info.get("tflop_per_s")),
            f"{self.info['of_ceiling']:.0%} {self.info['limit']}" if "of_ceiling" in self.info else "-",
        )
        return aligned(cells)


def duration(seconds: float) -> str:
    """In the unit that leaves one to three digits before the point."""
    unit, factor = next(((u, f) for u, f in (("us", 1e6), ("ms", 1e3)) if seconds * f < 1000), ("s", 1.0))
    return f"{seconds * factor:.2f} {unit}"


def figure(value: float | None) -> str:
    return "-" if not value else f"{value:.3g}"


def aligned(cells: tuple[str, ...]) -> str:
    """The first to the left, the others to the right."""
    return " ".join(f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, WIDTHS, strict=True)))


def lines(rows: list[Row], automatic: dict[str, str]) -> Iterator[str]:
    """automatic: by call, the contestant that the engine takes by itself; it is marked."""
    yield aligned(HEAD)
    for call in dict.fromkeys(row.call for row in rows):
        yield ""
        yield call
        for row in rows:
            if row.call == call:
                yield row.line(automatic.get(call) == row.contestant)
