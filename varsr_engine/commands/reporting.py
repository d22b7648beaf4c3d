"""Progress and messages of a run over many images, on stderr: bars in a terminal, else one line an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from varsr_engine.commands.terminal import is_interactive, say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Reporter:
    """Shows a run's progress. quiet: only errors."""

    def __init__(self, names: Sequence[str], *, quiet: bool) -> None:
        self._names, self._quiet = names, quiet
        self._done = self._batch = 0
        self._stages = self._stage = 0
        self._tiles: tuple[int, int] | None = None  # done, in all: of an image of several
        self._seen: set[str] = set()
        self._bars: Progress | None = None
        self._images: TaskID
        self._current: TaskID
        if is_interactive() and not quiet:
            self._bars = self._make_bars()

    def _make_bars(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        text = TextColumn("{task.description}", markup=False)
        bars = Progress(
            text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True
        )
        self._images = bars.add_task("images", total=len(self._names))
        self._current = bars.add_task("loading the model", total=None)
        return bars

    def __enter__(self) -> Reporter:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def loading(self, done: int, total: int) -> None:
        """Called while the model is loaded."""
        if self._bars is not None:
            self._bars.update(self._current, completed=done, total=total)

    def warming_up(self, done: int, total: int) -> None:
        """Called while a GPU's kernels are compiled and its graphs captured: seconds, the first time minutes."""
        if self._bars is not None:
            self._bars.update(self._current, completed=done, total=total, description="preparing the GPU")

    def begin(self, stages: int, batch: int) -> None:
        """The model is there: an image, or batch of images, takes this many stages."""
        self._stages, self._batch = stages, batch
        if self._bars is not None:
            self._bars.reset(self._images)  # its clock starts now: loading says nothing of the time an image takes
            self._bars.reset(self._current, total=stages, description=self._name())

    def stage(self, name: str) -> None:
        """A stage of the current batch has ended."""
        self._stage = 1 if name == "condition" else min(self._stage + 1, self._stages)
        if self._bars is not None and self._tiles is None:
            left = min(self._batch, len(self._names) - self._done)
            self._bars.update(self._images, completed=self._done + left * self._stage / self._stages)
            self._bars.update(self._current, completed=self._stage, description=f"{self._name()}: {name}")

    def tiles(self, done: int, total: int) -> None:
        """Of the current image, which has several tiles, `done` are ready; the bar counts them."""
        self._tiles = done, total
        if self._bars is not None:
            name = f"{self._name()}: {'decoder' if done == total else 'tiles'}"
            self._bars.update(self._current, completed=done, total=total, description=name)
            self._bars.update(self._images, completed=max(self._done + done / total, self._bars.tasks[0].completed))

    def finished(self, line: str) -> None:
        """An image is done; `line` says what came of it."""
        self._done += 1
        self._stage, self._tiles = 0, None
        if not self._quiet:
            self.say(f"[{self._done}/{len(self._names)}] {line}")
        if self._bars is not None:
            if self._done >= (self._bars.tasks[0].completed or 0):
                self._bars.update(self._images, completed=self._done)
            self._bars.update(self._current, completed=0, total=self._stages, description=self._name())

    def warn(self, text: str) -> None:
        """A warning, printed once however often it comes."""
        if text not in self._seen and not self._quiet:
            self.say(f"warning: {text}")
        self._seen.add(text)

    def say(self, text: str) -> None:
        """A line of text, above the bars where there are any."""
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            say(text)

    def _name(self) -> str:
        return self._names[self._done] if self._done < len(self._names) else ""
