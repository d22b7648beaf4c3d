"""Rounds that were timed already, handed to pytest-benchmark as if it timed them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class Replay:
    """A clock that stands still but for `round`, which moves it on by the next measured duration.

    pytest-benchmark reads the clock, calls `round`, and reads it again: its statistics, comparisons and JSON are then
    those of the interleaved rounds, and on a GPU of the device's own events.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._left: Iterator[float] = iter(())

    def load(self, seconds: Sequence[float]) -> None:
        """The durations of the next rounds."""
        self._now, self._left = 0.0, iter(seconds)

    def interleaved_rounds(self) -> float:
        """The clock. Its name is that of the timer in pytest-benchmark's JSON."""
        return self._now

    def round(self) -> None:
        self._now += next(self._left)
