"""What the scheduler itself costs a tile: microseconds, where a tile on the fastest GPU takes milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest

from varsr_engine.engine.scheduling import Checkpoint, Scheduler, Unit

STAGES = [f"scale.{k}" for k in range(10)]
LIMIT = 200e-6  # 2 % of a tile that takes 10 ms


class NoJob:
    key = "key"

    def __init__(self, units: int) -> None:
        self.units = units

    def complete(self, index: int, output: Any) -> None:
        pass

    def preview(self, stage: str, index: int, output: Any) -> Any:
        pass

    def finish(self) -> None:
        pass


class NoRunner:
    """All checkpoints of a real one and nothing between."""

    def max_batch(self, key: Hashable) -> int:
        return 8

    def run(self, units: Sequence[Unit], checkpoint: Checkpoint) -> Sequence[Any]:
        for stage in STAGES:
            checkpoint(stage)
        return [None] * len(units)

    def reclaim(self) -> None:
        pass


def fastest(call: Callable[[], object], repeats: int = 5) -> float:
    """The shortest of some runs: others share the machine."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@pytest.mark.parametrize("threaded", [False, True], ids=["inline", "thread"])
@pytest.mark.parametrize(("jobs", "units"), [(256, 1), (4, 64)], ids=["one tile each", "64 tiles each"])
def test_microseconds_a_tile(threaded: bool, jobs: int, units: int) -> None:
    with Scheduler(NoRunner(), threaded=threaded) as scheduler:

        def burst() -> None:
            for handle in [scheduler.submit(NoJob(units), deadline=1e9) for _ in range(jobs)]:
                handle.result()

        each = fastest(burst) / (jobs * units)
    print(f"\n{each * 1e6:.1f} microseconds a tile", end="")
    assert each < LIMIT


def test_microseconds_a_lone_request() -> None:
    """Nobody else there: both threads wake up for each."""
    with Scheduler(NoRunner()) as scheduler:
        each = fastest(lambda: [scheduler.submit(NoJob(1)).result() for _ in range(100)]) / 100
    print(f"\n{each * 1e6:.1f} microseconds a request", end="")
    assert each < 10 * LIMIT
