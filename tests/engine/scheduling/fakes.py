"""A clock that moves when told, jobs that count what is done to them, and a runner with faults to order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from varsr_engine.engine.scheduling import Checkpoint, Scheduler, Unit
from varsr_engine.errors import NumericalError

SCALES = 4


class VirtualClock:
    """Seconds that pass only in `advance`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Poison(Exception):
    """What a bad unit raises."""


class FakeJob:
    """Its result is the list of its outputs, (name, index) each.

    faults: by unit, what happens in a batch with it: "raise" always, "once" the first time, "nan" a NumericalError with
    its row, "memory" an error of memory even alone, "complete" when its output is taken. Of the job: "finish".
    """

    def __init__(
        self,
        name: object = "job",
        units: int = 1,
        *,
        key: Hashable = "key",
        faults: dict[int | str, str] | None = None,
    ) -> None:
        self.name, self.units, self.key = name, units, key
        self.faults: dict[int | str, str] = dict(faults or {})
        self.outputs: dict[int, Any] = {}
        self.completed: Counter[int] = Counter()
        self.previews: list[tuple[str, int, Any]] = []
        self.finished = 0

    def complete(self, index: int, output: Any) -> None:
        self.completed[index] += 1
        if self.faults.get(index) == "complete":
            raise Poison(f"{self.name}: complete {index}")
        self.outputs[index] = output

    def preview(self, stage: str, index: int, output: Any) -> Any:
        self.previews.append((stage, index, output))
        if "preview" in self.faults:
            raise Poison(f"{self.name}: preview")
        return f"{stage} of {output}"

    def finish(self) -> list[Any]:
        self.finished += 1
        if "finish" in self.faults:
            raise Poison(f"{self.name}: finish")
        return [self.outputs[i] for i in range(self.units)]

    @property
    def expected(self) -> list[Any]:
        return [(self.name, i) for i in range(self.units)]


class FakeRunner:
    """Batches of up to `largest` units take `seconds(units)` of the virtual clock, a quarter of it a scale.

    memory: larger batches raise MemoryError. on_scale(): called before each checkpoint.
    """

    def __init__(
        self,
        clock: VirtualClock | None = None,
        largest: int = 4,
        seconds: Callable[[int], float] = lambda units: 1.0,
    ) -> None:
        self.clock, self.largest, self.seconds = clock or VirtualClock(), largest, seconds
        self.memory: int | None = None
        self.on_scale: Callable[[], object] = lambda: None
        self.batches: list[list[tuple[Any, int]]] = []  # names and indices
        self.stages = 0
        self.reclaimed = 0

    def max_batch(self, key: Hashable) -> int:
        return self.largest

    def run(self, units: Sequence[Unit], checkpoint: Checkpoint) -> list[Any]:
        names = [(job.name, index) for job, index in units]  # type: ignore[attr-defined]
        self.batches.append(names)
        assert 1 <= len(units) <= self.largest
        assert len({job.key for job, _ in units}) == 1, "keys were mixed"
        assert len(set(names)) == len(names), "a unit twice in a batch"
        for scale in range(SCALES):
            self.clock.advance(self.seconds(len(units)) / SCALES)
            self.on_scale()
            self.stages += 1
            checkpoint(f"scale.{scale}", lambda row: names[row])
        self._fail(units)
        return names

    def _fail(self, units: Sequence[Unit]) -> None:
        faults = [job.faults.get(index) for job, index in units]  # type: ignore[attr-defined]
        if "memory" in faults or (self.memory is not None and len(units) > self.memory):
            raise MemoryError(f"{len(units)} units")
        for (job, index), fault in zip(units, faults, strict=True):
            if fault == "once":
                del job.faults[index]  # type: ignore[attr-defined]
            if fault in ("raise", "once"):
                raise Poison(f"{job.name}: unit {index}")  # type: ignore[attr-defined]
        if "nan" in faults:
            raise NumericalError("NaN", rows=[row for row, fault in enumerate(faults) if fault == "nan"])

    def reclaim(self) -> None:
        self.reclaimed += 1


def inline(runner: FakeRunner | None = None, **settings: Any) -> tuple[Scheduler, FakeRunner, VirtualClock]:
    """A scheduler without a thread on a virtual clock."""
    runner = runner or FakeRunner()
    return Scheduler(runner, threaded=False, clock=runner.clock, **settings), runner, runner.clock
