"""Cancellation, deadlines, events and previews of a request, on a virtual clock."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest

from tests.engine.scheduling.fakes import SCALES, FakeJob, FakeRunner, inline
from varsr_engine.engine.scheduling import Checkpoint, Event, Handle, Unit
from varsr_engine.errors import DeadlineExceededError, RequestCancelled


def test_cancel_what_waits() -> None:
    scheduler, runner, _ = inline()
    a, b = scheduler.submit(FakeJob("a", 3)), scheduler.submit(FakeJob("b"))
    assert a.cancel() and a.done()
    assert not a.cancel()
    with pytest.raises(RequestCancelled):
        a.result()
    assert b.result() and not b.cancel()
    assert runner.batches == [[("b", 0)]]


def test_cancel_alone_stops_at_the_next_checkpoint() -> None:
    scheduler, runner, clock = inline()
    handle = scheduler.submit(FakeJob("a", 9))
    runner.on_scale = lambda: runner.stages == 1 and handle.cancel()
    assert isinstance(handle.exception(), RequestCancelled)
    assert (runner.stages, clock.now) == (2, 0.5)
    assert not scheduler.step()


def test_cancel_leaves_batch_mates_alone() -> None:
    scheduler, runner, _ = inline()
    job = FakeJob("a")
    a, b = scheduler.submit(job), scheduler.submit(FakeJob("b"))
    runner.on_scale = a.cancel
    assert b.result() == [("b", 0)]
    assert runner.stages == SCALES and not job.completed


def test_runner_that_swallows_abandoned() -> None:
    class Runner(FakeRunner):
        def run(self, units: Sequence[Unit], checkpoint: Checkpoint) -> list[Any]:
            try:
                return super().run(units, checkpoint)
            except BaseException:
                return [None] * len(units)

    scheduler, runner, _ = inline(Runner())
    handle = scheduler.submit(FakeJob())
    runner.on_scale = handle.cancel
    assert scheduler.step()
    assert isinstance(handle.exception(), RequestCancelled)
    assert not scheduler.step()


@pytest.mark.parametrize(
    ("deadline", "stages"),
    [(-1.0, 0), (0.0, 0), (0.25, 1), (0.6, 3)],
    ids=["past", "when a batch is formed", "at a checkpoint", "at a later one"],
)
def test_deadline(deadline: float, stages: int) -> None:
    scheduler, runner, _ = inline()
    handle = scheduler.submit(FakeJob(), deadline=deadline)
    with pytest.raises(DeadlineExceededError, match="deadline passed"):
        handle.result()
    assert runner.stages == stages
    assert scheduler.stats().expired == 1


def test_deadline_before_finish() -> None:
    class Runner(FakeRunner):
        def run(self, units: Sequence[Unit], checkpoint: Checkpoint) -> list[Any]:
            outputs = super().run(units, checkpoint)
            self.clock.advance(1)
            return outputs

    scheduler, _, _ = inline(Runner())
    job = FakeJob()
    handle = scheduler.submit(job, deadline=1.5)
    assert isinstance(handle.exception(), DeadlineExceededError)
    assert not job.finished


def test_deadline_of_what_waits_for_another_batch() -> None:
    """A caller hears at the running batch's next checkpoint, not at its end."""
    scheduler, runner, clock = inline(FakeRunner(largest=1))
    scheduler.submit(FakeJob("runs"))
    waits = scheduler.submit(FakeJob("waits"), deadline=0.3)
    heard: list[float] = []
    waits.add_done_callback(lambda _: heard.append(clock.now))
    assert scheduler.drain()
    assert heard == [0.5] and len(runner.batches) == 1


def test_deadline_that_is_met() -> None:
    scheduler, _, _ = inline()
    assert scheduler.submit(FakeJob(), deadline=1.01).result() == [("job", 0)]


def test_events_and_result() -> None:
    scheduler, _, _ = inline()
    got = list(scheduler.submit(FakeJob("a", 2), events=True).events())
    assert got[:2] == [Event("scale.0", n, 2, f"scale.0 of ('a', {n})") for n in (0, 1)]
    assert [e.stage for e in got[:-1]] == [f"scale.{k}" for k in range(SCALES) for _ in (0, 1)]  # type: ignore[union-attr]
    assert got[-1] == [("a", 0), ("a", 1)]


def test_no_events_unless_asked_for() -> None:
    scheduler, _, _ = inline()
    job = FakeJob("a")
    assert list(scheduler.submit(job).events()) == [[("a", 0)]]
    assert job.previews == []


def test_slow_consumer_loses_the_oldest_events() -> None:
    scheduler, _, _ = inline(max_events=2)
    handle = scheduler.submit(FakeJob("a"), events=True)
    assert scheduler.drain()
    got = list(handle.events())
    assert [e.stage for e in got[:-1]] == ["scale.2", "scale.3"]  # type: ignore[union-attr]
    assert got[-1] == [("a", 0)]
    assert handle.dropped_events == 2


@pytest.mark.parametrize("events", [False, True])
@pytest.mark.parametrize("faults", [{}, {"preview": ""}], ids=["previews", "previews that fail"])
def test_previews_change_nothing(events: bool, faults: Any, caplog: pytest.LogCaptureFixture) -> None:
    scheduler, runner, _ = inline()
    handle = scheduler.submit(FakeJob("a", faults=faults), events=events)
    assert handle.result() == [("a", 0)]
    assert len(runner.batches) == 1
    assert [r.levelno for r in caplog.records] == [logging.WARNING] * (SCALES if events and faults else 0)
    if events:
        assert [e.preview is None for e in list(handle.events())[:-1]] == [bool(faults)] * SCALES  # type: ignore[union-attr]


def test_events_end_with_the_error() -> None:
    scheduler, _, _ = inline()
    handle = scheduler.submit(FakeJob("a", faults={"finish": ""}), events=True)
    stages = []
    with pytest.raises(Exception, match="a: finish"):
        for event in handle.events():
            stages.append(event.stage)  # type: ignore[union-attr]
    assert len(stages) == SCALES
    with pytest.raises(Exception, match="a: finish"):
        next(handle.events())


def test_callbacks(caplog: pytest.LogCaptureFixture) -> None:
    scheduler, _, _ = inline()
    handle = scheduler.submit(FakeJob("a"))
    seen: list[Handle[Any]] = []
    handle.add_done_callback(lambda h: 1 / 0)
    handle.add_done_callback(seen.append)
    assert not seen
    handle.result()
    handle.add_done_callback(seen.append)
    assert seen == [handle, handle]
    assert [r.message for r in caplog.records] == ["a request's done callback failed"]


def test_callback_may_submit_but_not_wait() -> None:
    scheduler, _, _ = inline()
    first = scheduler.submit(FakeJob("a"))
    second: list[Handle[Any]] = []
    refused: list[str] = []

    def callback(_: Handle[Any]) -> None:
        second.append(scheduler.submit(FakeJob("b")))
        for wait in (second[0].result, scheduler.step, scheduler.drain):
            try:
                wait()
            except RuntimeError as error:
                refused.append(str(error))

    first.add_done_callback(callback)
    assert first.result() and second[0].result() == [("b", 0)]
    assert len(refused) == 3 and "must not wait" in refused[0]


def test_timeout() -> None:
    scheduler, _, _ = inline()
    handle = scheduler.submit(FakeJob("a", 2))
    with pytest.raises(TimeoutError, match="no result within 0 s"):
        handle.result(timeout=0)
    assert handle.result(timeout=60) == handle.result(timeout=0)
