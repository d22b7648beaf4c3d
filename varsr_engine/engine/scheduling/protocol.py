"""What the scheduler knows of the engine: a job is one request, a runner computes units of several jobs at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

R_co = TypeVar("R_co", covariant=True)


class Job(Protocol[R_co]):
    """One request, of one or more units (tiles). The scheduler drops it, with all it holds, the moment it is resolved.

    All methods are called on the engine thread, one at a time. An exception in any but `preview` fails this job alone.
    """

    @property
    def units(self) -> int:
        """How many units: read once, when the job is submitted."""

    @property
    def key(self) -> Hashable:
        """Units of jobs with equal keys may share a batch. Read once."""

    def complete(self, index: int, output: Any) -> None:
        """Take unit `index`'s output, once for each index and in any order."""

    def preview(self, stage: str, index: int, output: Any) -> Any:
        """What an event shows of unit `index` as it is after `stage`; None for nothing. Must not change `output`."""

    def finish(self) -> R_co:
        """The result, once all units are complete."""


Unit = tuple[Job[Any], int]


class Checkpoint(Protocol):
    """Called by a runner between scales: `checkpoint("scale.3", lambda row: f_hat[row])`."""

    def __call__(self, stage: str, row: Callable[[int], Any] | None = None, /) -> None:
        """row(i): the i-th unit of the batch as it is now, asked for only where somebody listens, and before this
        returns. Raises Abandoned when nobody waits for the batch any more.
        """


class Runner(Protocol):
    """Computes batches on the device. All methods are called on the engine thread, one at a time."""

    def max_batch(self, key: Hashable, /) -> int:
        """How many units of that key fit one batch. Must not raise."""

    def run(self, units: Sequence[Unit], checkpoint: Checkpoint, /) -> Sequence[Any]:
        """One output a unit, in order.

        What to raise: an error of memory, for which the batch is cut; NumericalError with `rows`, the bad units'
        places in the batch; EngineDeadError where nothing can run on the device any more; anything else for a fault
        of some unit, which is then found by halving the batch. Lets Abandoned pass.
        """

    def reclaim(self) -> None:
        """Give cached memory back to the device: called after an error of memory, when its frames are gone."""


class Abandoned(BaseException):
    """Every request of the batch is cancelled, expired or failed. Not an Exception: no handler of faults catches it."""


@dataclass(frozen=True, slots=True)
class Event:
    """Unit `index` (of `units`) passed a stage. After a fault a unit runs, and passes its stages, again."""

    stage: str
    index: int
    units: int
    preview: Any = None
