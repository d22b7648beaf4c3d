"""Nothing of a resolved request stays behind: not its job, not its outputs, not in the frames of its error.

The collector is off: what is found dead here was let go, not swept up later.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.engine.scheduling.fakes import FakeJob, FakeRunner, Poison, inline
from tests.engine.scheduling.test_threads import PATIENT, GatedRunner, wait_until
from varsr_engine.engine.scheduling import Checkpoint, Handle, Scheduler, Unit
from varsr_engine.errors import DeadlineExceededError, RequestCancelled, VarsrError


class Tensor:
    """Stands for one."""


class TensorJob(FakeJob):
    """Holds an input, and its outputs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.input = Tensor()

    def preview(self, stage: str, index: int, output: Any) -> Any:
        return Tensor()


class TensorRunner(FakeRunner):
    """Gives tensors, and keeps some in the locals of its frames."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outputs: list[weakref.ref[Tensor]] = []

    def run(self, units: Sequence[Unit], checkpoint: Checkpoint) -> list[Any]:
        outputs = [Tensor() for _ in units]
        self.outputs += map(weakref.ref, outputs)
        names = super().run(units, checkpoint)
        assert len(names) == len(outputs)
        return outputs


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def submit(scheduler: Scheduler, *args: Any, **kwargs: Any) -> tuple[Handle[Any], list[weakref.ref[Any]]]:
    """A handle, and references to the job and its input."""
    settings = {k: kwargs.pop(k) for k in ("deadline", "events") if k in kwargs}
    job = TensorJob(*args, **kwargs)
    return scheduler.submit(job, **settings), [weakref.ref(job), weakref.ref(job.input)]


def alive(references: list[weakref.ref[Any]]) -> list[Any]:
    return [r() for r in references if r() is not None]


@pytest.mark.parametrize(
    ("faults", "error"),
    [
        ({}, None),
        ({0: "raise"}, Poison),
        ({0: "nan"}, VarsrError),
        ({0: "memory"}, VarsrError),
        ({0: "complete"}, Poison),
        ({"finish": ""}, Poison),
    ],
    ids=["result", "poison", "numbers", "memory", "complete", "finish"],
)
def test_resolved(faults: dict[int | str, str], error: type[Exception] | None) -> None:
    """Handles and their errors are kept: they hold nothing but the result."""
    runner = TensorRunner()
    scheduler, _, _ = inline(runner)
    handles, references = zip(
        *(submit(scheduler, n, 2, faults=faults if n == 1 else {}) for n in range(3)), strict=True
    )
    while scheduler.step():
        pass
    for n, handle in enumerate(handles):
        assert isinstance(handle.exception(), error if n == 1 and error else type(None))
    assert not alive([r for pair in references for r in pair])
    results = {id(t) for h in handles if h.exception() is None for t in h.result()}
    assert {id(t) for t in alive(runner.outputs)} == results
    del handle, handles
    assert not alive(runner.outputs)


def test_cancelled_while_waiting() -> None:
    scheduler, _, _ = inline()
    handle, references = submit(scheduler, units=9)
    assert len(alive(references)) == 2
    handle.cancel()
    assert not alive(references)


def test_cancelled_with_some_tiles_done() -> None:
    runner = TensorRunner(largest=2)
    scheduler, _, _ = inline(runner)
    handle, references = submit(scheduler, units=9)
    scheduler.step()
    assert len(alive(runner.outputs)) == 2
    handle.cancel()
    assert not alive(references) and not alive(runner.outputs)


def test_cancelled_before_finish_and_before_a_retry() -> None:
    runner = TensorRunner()
    scheduler, _, _ = inline(runner)
    handle, references = submit(scheduler)
    scheduler.step()
    handle.cancel()
    assert not alive(references) and not alive(runner.outputs)
    other, more = submit(scheduler, units=2, faults={0: "once"})
    scheduler.step()
    other.cancel()
    assert not alive(more) and not alive(runner.outputs)


def test_expired() -> None:
    scheduler, _, clock = inline()
    handle, references = submit(scheduler, deadline=1)
    clock.advance(2)
    scheduler.step()
    assert isinstance(handle.exception(), DeadlineExceededError)
    assert not alive(references)


def test_previews_of_a_cancelled_request() -> None:
    runner = FakeRunner()
    scheduler, _, _ = inline(runner)
    handle, _ = submit(scheduler, events=True)
    runner.on_scale = lambda: runner.stages == 2 and handle.cancel()
    scheduler.step()
    assert isinstance(handle.exception(), RequestCancelled)
    assert not handle._events


def test_memory_is_reclaimed_when_the_batch_is_gone() -> None:
    """The failed batch's tensors are dead by then: not in the error's frames, not in the scheduler's."""
    left: list[int] = []

    class Runner(TensorRunner):
        def reclaim(self) -> None:
            left.append(len(alive(self.outputs)))

    runner = Runner()
    runner.memory = 1
    scheduler, _, _ = inline(runner)
    handle, _ = submit(scheduler, units=4)
    scheduler.step()
    assert left == [0]
    assert len(handle.result()) == 4


def test_memory_of_a_request_that_failed_is_reclaimed() -> None:
    left: list[int] = []

    class Runner(FakeRunner):
        def reclaim(self) -> None:
            left.append(len(alive(references)))

    scheduler, _, _ = inline(Runner())
    handle, references = submit(scheduler, faults={0: "memory"})
    assert isinstance(handle.exception(), VarsrError)
    assert left == [0]


@pytest.mark.parametrize("faults", [{}, {"finish": ""}, {0: "raise"}])
def test_dead_when_callbacks_run(faults: Any) -> None:
    left: list[int] = []
    scheduler, _, _ = inline()
    handle, references = submit(scheduler, faults=faults)
    handle.add_done_callback(lambda _: left.append(len(alive(references))))
    handle.exception()
    assert left == [0]


@pytest.mark.parametrize("faults", [{}, {"finish": ""}, {0: "raise"}])
def test_dead_as_soon_as_the_caller_hears(faults: Any) -> None:
    runner = TensorRunner()
    with Scheduler(runner) as scheduler:
        for _ in range(20):
            handle, references = submit(scheduler, faults=faults)
            handle.exception(PATIENT)
            if 0 not in faults:
                assert not alive(references)
            del handle
            wait_until(lambda: not alive(runner.outputs))


def test_idle_thread_holds_nothing() -> None:
    runner = GatedRunner()
    with Scheduler(runner) as scheduler:
        handle, references = submit(scheduler)
        runner.running.wait(PATIENT)
        handle.cancel()
        runner.gate.set()
        wait_until(lambda: not alive(references))


@pytest.mark.parametrize("resolve", [Scheduler.close, lambda s: s._ledger.die(RuntimeError("x"))])
def test_closed_or_dead(resolve: Callable[[Scheduler], object]) -> None:
    scheduler, _, _ = inline()
    handles, references = zip(*(submit(scheduler, n) for n in range(3)), strict=True)
    resolve(scheduler)
    assert all(h.done() for h in handles)
    assert not alive([r for pair in references for r in pair])
