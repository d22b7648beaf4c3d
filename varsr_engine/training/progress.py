"""A training run's progress on stderr: a bar in a terminal, else a line now and then."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from varsr_engine.commands.terminal import is_interactive, say

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

LINE_EVERY_SECONDS = 30.0
SHOWN = 4


class Progress:
    """Shows step, losses, images a second and the time left."""

    def __init__(self, start: int, end: int, *, quiet: bool) -> None:
        self._start, self._end, self._quiet = start, end, quiet
        self._began = time.perf_counter()
        self._spoke = -LINE_EVERY_SECONDS
        self._bars: Bars | None = None
        if is_interactive() and not quiet:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}", markup=False),
                TimeRemainingColumn(),
            )
            self._bars = RichProgress(*columns, console=Console(stderr=True))
            self._task = self._bars.add_task("", total=end, completed=start)

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def update(self, step: int, numbers: dict[str, float], rate: float) -> None:
        text = "  ".join(f"{name} {value:.4g}" for name, value in list(numbers.items())[:SHOWN])
        text = f"{text}  {rate:.1f} images/s"
        if self._bars is not None:
            self._bars.update(self._task, completed=step, description=text)
            return
        now = time.perf_counter()
        if self._quiet or (now - self._spoke < LINE_EVERY_SECONDS and step != self._end):
            return
        self._spoke = now
        left = (now - self._began) / (step - self._start) * (self._end - step)
        say(f"step {step}/{self._end}  {text}  {left / 60:.0f} min left")
