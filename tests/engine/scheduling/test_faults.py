"""A fault stays with its request: poison, memory, numbers, lost devices, and mistakes of the scheduler itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.engine.scheduling.fakes import FakeJob, FakeRunner, Poison, inline
from varsr_engine.engine.scheduling import Checkpoint, Unit
from varsr_engine.engine.scheduling.batch_limit import PATIENCE
from varsr_engine.errors import EngineDeadError, NumericalError, RequestCancelled, ResourceExhaustedError


def sizes(runner: FakeRunner) -> list[int]:
    return [len(batch) for batch in runner.batches]


@pytest.mark.parametrize("bad", range(8))
def test_one_bad_row_of_eight(bad: int) -> None:
    scheduler, runner, _ = inline(FakeRunner(largest=8))
    handles = [scheduler.submit(FakeJob(n, faults={0: "raise"} if n == bad else {})) for n in range(8)]
    assert scheduler.drain()
    for n, handle in enumerate(handles):
        if n == bad:
            assert isinstance(handle.exception(), Poison)
            with pytest.raises(Poison, match=f"{bad}: unit 0"):
                handle.result()
        else:
            assert handle.result() == [(n, 0)]
    assert sorted(sizes(runner)) == [1, 1, 2, 2, 4, 4, 8]


def test_a_fault_that_passes_fails_nobody() -> None:
    scheduler, runner, _ = inline()
    handles = [scheduler.submit(FakeJob(n, faults={0: "once"} if n == 2 else {})) for n in range(4)]
    assert [h.result() for h in handles] == [[(n, 0)] for n in range(4)]
    assert sizes(runner) == [4, 2, 2]


def test_other_tiles_of_a_failed_request_are_dropped() -> None:
    scheduler, runner, _ = inline(bulk_share=1.0)
    bad = scheduler.submit(FakeJob("bad", 64, faults={0: "raise"}))
    good = scheduler.submit(FakeJob("good"))
    assert good.result() == [("good", 0)]
    assert isinstance(bad.exception(), Poison)
    assert not scheduler.step()
    assert sizes(runner) == [4, 2, 1, 1]  # the other two tiles of the first batch are not run again


def test_rows_with_names_run_alone() -> None:
    scheduler, runner, _ = inline(FakeRunner(largest=8))
    handles = [scheduler.submit(FakeJob(n, faults={0: "nan"} if n in (2, 5) else {})) for n in range(8)]
    assert scheduler.drain()
    assert sizes(runner) == [8, 6, 1, 1]
    assert [n for n, h in enumerate(handles) if isinstance(h.exception(), NumericalError)] == [2, 5]
    assert handles[2].exception() is not handles[5].exception()
    assert scheduler.stats().failed == {"numerical_error": 2}


@pytest.mark.parametrize("rows", [None, [], [17], "01", [0.5]])
def test_rows_that_name_nobody(rows: object) -> None:
    """Then it is a fault like any other."""

    class Runner(FakeRunner):
        def _fail(self, units: Sequence[Unit]) -> None:
            if any(job.name == 1 for job, _ in units):  # type: ignore[attr-defined]
                raise NumericalError("NaN", rows=rows)

    scheduler, runner, _ = inline(Runner())
    handles = [scheduler.submit(FakeJob(n)) for n in range(4)]
    assert scheduler.drain()
    assert sizes(runner) == [4, 2, 1, 1, 2]
    assert [n for n, h in enumerate(handles) if h.exception()] == [1]


def test_memory_halves_the_batch() -> None:
    scheduler, runner, _ = inline(FakeRunner(largest=8))
    runner.memory = 3
    handles = [scheduler.submit(FakeJob(n)) for n in range(8)]
    assert [h.result() for h in handles] == [[(n, 0)] for n in range(8)]
    assert sizes(runner) == [8, 4, 2, 2, 2, 2]
    assert runner.reclaimed == 2
    assert scheduler.stats().batch_limit == 2


def test_memory_comes_back_slowly() -> None:
    scheduler, runner, _ = inline(FakeRunner(largest=8), max_queued_units=10_000, bulk_share=1.0)
    runner.memory = 3
    scheduler.submit(FakeJob("big", 8)).result()
    runner.memory = None
    scheduler.submit(FakeJob("big", 2 * PATIENCE - 2 * 4)).result()  # as many batches of 2 as are missing
    assert scheduler.stats().batch_limit == 4
    for n in range(2 * PATIENCE):
        scheduler.submit(FakeJob(n)).result()  # a batch of one proves nothing
    assert scheduler.stats().batch_limit == 4
    scheduler.submit(FakeJob("big", 4 * PATIENCE)).result()
    assert scheduler.stats().batch_limit is None


@pytest.mark.parametrize("error", [MemoryError("no"), torch.OutOfMemoryError("no"), ResourceExhaustedError("no")])
def test_out_of_memory_alone(error: Exception) -> None:
    """A unit that does not fit alone fails its request, with the engine's own error."""

    class Runner(FakeRunner):
        def _fail(self, units: Sequence[Unit]) -> None:
            if any(job.name == 1 for job, _ in units):  # type: ignore[attr-defined]
                raise error

    scheduler, runner, _ = inline(Runner())
    handles = [scheduler.submit(FakeJob(n)) for n in range(3)]
    assert scheduler.drain()
    assert [n for n, h in enumerate(handles) if h.exception()] == [1]
    with pytest.raises(ResourceExhaustedError, match="no"):
        handles[1].result()
    assert runner.reclaimed == 2
    assert scheduler.stats().failed == {"resource_exhausted": 1}


@pytest.mark.parametrize("where", ["complete", "finish"])
def test_job_that_raises(where: str) -> None:
    scheduler, _, _ = inline()
    faults: dict[int | str, str] = {"finish": ""} if where == "finish" else {1: "complete"}
    bad = scheduler.submit(FakeJob("bad", 3, faults=faults))
    good = scheduler.submit(FakeJob("good"))
    assert good.result() == [("good", 0)]
    with pytest.raises(Poison, match=where):
        bad.result()


def test_no_memory_in_finish() -> None:
    class Job(FakeJob):
        def finish(self) -> list[Any]:
            raise MemoryError("decoder")

    scheduler, _, _ = inline()
    bad, good = scheduler.submit(Job("bad")), scheduler.submit(FakeJob("good"))
    assert isinstance(bad.exception(), ResourceExhaustedError)
    assert good.result()


@pytest.mark.parametrize("outputs", [[], [1, 2], None])
def test_wrong_number_of_outputs(outputs: list[int] | None) -> None:
    class Runner(FakeRunner):
        def run(self, units: Sequence[Unit], checkpoint: Checkpoint) -> Any:
            return outputs

    scheduler, _, _ = inline(Runner())
    with pytest.raises(RuntimeError, match="the runner gave"):
        scheduler.submit(FakeJob()).result()


@pytest.mark.parametrize("where", ["run", "complete", "finish"])
def test_lost_device(where: str, caplog: pytest.LogCaptureFixture) -> None:
    """Everybody is told, once; nothing is taken any more."""

    def lose() -> None:
        raise EngineDeadError("the device was lost: illegal access")

    class Job(FakeJob):
        def complete(self, index: int, output: Any) -> None:
            super().complete(index, output)
            if where == "complete":
                lose()

        def finish(self) -> list[Any]:
            return lose() if where == "finish" else super().finish()  # type: ignore[func-returns-value]

    class Runner(FakeRunner):
        def _fail(self, units: Sequence[Unit]) -> None:
            if where == "run":
                lose()

    scheduler, _, _ = inline(Runner())
    handles = [scheduler.submit(Job(n)) for n in range(6)]
    while scheduler.step():
        pass
    assert {type(h.exception()) for h in handles} == {EngineDeadError}
    assert len({id(h.exception()) for h in handles}) == 6
    health = scheduler.health()
    assert (health.ok, health.state, health.reason) == (False, "dead", "the device was lost: illegal access")
    with pytest.raises(EngineDeadError, match="illegal access"):
        scheduler.submit(FakeJob())
    assert scheduler.drain(timeout=1)
    assert [r.levelno for r in caplog.records] == [logging.ERROR]


def test_mistake_of_the_scheduler() -> None:
    class Runner(FakeRunner):
        def max_batch(self, key: object) -> int:
            raise KeyError("oops")

    scheduler, _, _ = inline(Runner())
    handle = scheduler.submit(FakeJob())
    with pytest.raises(EngineDeadError, match="the scheduler failed: KeyError: 'oops'"):
        scheduler.step()
    with pytest.raises(EngineDeadError):
        handle.result()
    assert not scheduler.health().ok
    with pytest.raises(EngineDeadError):
        scheduler.submit(FakeJob())


def test_interrupted_host_may_go_on() -> None:
    """Ctrl-C while the host's own thread runs a batch: the batch is not lost."""
    scheduler, runner, _ = inline()
    handles = [scheduler.submit(FakeJob(n)) for n in range(2)]

    def interrupt() -> None:
        runner.on_scale = lambda: None
        raise KeyboardInterrupt

    runner.on_scale = interrupt
    with pytest.raises(KeyboardInterrupt):
        handles[0].result()
    assert scheduler.health().ok
    assert [h.result() for h in handles] == [[(0, 0)], [(1, 0)]]


@pytest.mark.parametrize("where", ["complete", "finish"])
def test_interrupted_job(where: str) -> None:
    """What was half done is cancelled; its batch-mates go on."""

    class Job(FakeJob):
        def complete(self, index: int, output: Any) -> None:
            super().complete(index, output)
            if where == "complete":
                raise KeyboardInterrupt

        def finish(self) -> list[Any]:
            raise KeyboardInterrupt

    scheduler, _, _ = inline()
    handles = [scheduler.submit(Job("bad")), scheduler.submit(FakeJob("good"))]
    with pytest.raises(KeyboardInterrupt):
        scheduler.drain()
    assert isinstance(handles[0].exception(), RequestCancelled)
    assert handles[1].result() == [("good", 0)]
