"""Which units share a batch, in which order, and how many requests are taken."""

from __future__ import annotations

import pytest

from tests.engine.scheduling.fakes import FakeJob, FakeRunner, inline
from varsr_engine.errors import DrainingError, QueueFullError


def test_one_job() -> None:
    scheduler, runner, _ = inline()
    handle = scheduler.submit(FakeJob("a", 3))
    assert not handle.done()
    assert handle.result() == [("a", 0), ("a", 1), ("a", 2)]
    assert handle.done() and handle.exception() is None
    assert runner.batches == [[("a", 0), ("a", 1), ("a", 2)]]


def test_requests_take_turns() -> None:
    scheduler, runner, _ = inline(bulk_share=1.0)
    for name, units in (("big", 6), ("b", 1), ("c", 2)):
        scheduler.submit(FakeJob(name, units))
    assert scheduler.drain()
    assert runner.batches == [
        [("big", 0), ("b", 0), ("c", 0), ("big", 1)],
        [("big", 2), ("c", 1), ("big", 3), ("big", 4)],
        [("big", 5)],
    ]


def test_keys_take_turns_too() -> None:
    """An image of many tiles does not hold up one with another key."""
    scheduler, runner, _ = inline(bulk_share=1.0)
    for name, units, key in (("big", 9, 1), ("b", 2, 2), ("c", 1, None), ("d", 1, 1)):
        scheduler.submit(FakeJob(name, units, key=key))
    assert scheduler.drain()
    assert runner.batches == [
        [("big", 0), ("d", 0), ("big", 1), ("big", 2)],
        [("b", 0), ("b", 1)],
        [("c", 0)],
        [("big", 3), ("big", 4), ("big", 5), ("big", 6)],
        [("big", 7), ("big", 8)],
    ]


@pytest.mark.parametrize("key", ["big", "small"])
def test_who_comes_while_a_batch_runs_is_next(key: str) -> None:
    scheduler, runner, _ = inline()
    scheduler.submit(FakeJob("big", 8, key="big"))
    late = iter([FakeJob("small", key=key)])
    runner.on_scale = lambda: (job := next(late, None)) and scheduler.submit(job)
    scheduler.step()
    scheduler.step()
    assert len(runner.batches[0]) == 4
    assert runner.batches[1][0] == ("small", 0)


def test_bulk_leaves_room_while_others_are_about() -> None:
    scheduler, runner, _ = inline(FakeRunner(largest=8))
    big = scheduler.submit(FakeJob("big", 99))
    scheduler.step()
    scheduler.submit(FakeJob("small"))
    scheduler.step()
    assert batch_names(runner) == [["big"] * 8, ["small", "big", "big"]]
    assert big.result()
    assert [len(batch) for batch in runner.batches[2:]] == [2] * 15 + [8] * 7 + [3]  # 16 batches without small ones


def test_big_ones_among_themselves_fill_batches() -> None:
    scheduler, runner, _ = inline(FakeRunner(largest=8))
    for name in "ab":
        scheduler.submit(FakeJob(name, 12))
    assert scheduler.drain()
    assert batch_names(runner) == [["a", "b"] * 4] * 3


def batch_names(runner: FakeRunner) -> list[list[object]]:
    return [[name for name, _ in batch] for batch in runner.batches]


def test_many_small_ones_fill_a_batch() -> None:
    scheduler, runner, _ = inline(FakeRunner(largest=8))
    for n in range(16):
        scheduler.submit(FakeJob(n))
    assert scheduler.drain()
    assert batch_names(runner) == [list(range(8)), list(range(8, 16))]


def test_a_batch_takes_what_is_there_without_waiting() -> None:
    scheduler, runner, clock = inline()
    first = scheduler.submit(FakeJob("a"))
    late = iter([FakeJob(n) for n in "bcd"])
    runner.on_scale = lambda: (job := next(late, None)) and scheduler.submit(job)
    assert scheduler.step()
    assert not first.done()  # a step more finishes it
    assert scheduler.step() and first.done()
    assert scheduler.drain()
    assert [len(batch) for batch in runner.batches] == [1, 3]
    assert clock.now == 2.0
    assert not scheduler.step()


def test_finished_before_the_next_batch() -> None:
    scheduler, _, _ = inline(FakeRunner(largest=1))
    a, b = scheduler.submit(FakeJob("a")), scheduler.submit(FakeJob("b"))
    assert a.result() == [("a", 0)]
    assert not b.done()


def test_queue_full() -> None:
    """The bound counts what runs as well; room comes back with each resolved request."""
    scheduler, runner, _ = inline(max_queued_units=5, bulk_share=1.0)
    a = scheduler.submit(FakeJob("a", 3))
    b = scheduler.submit(FakeJob("b", 2))
    with pytest.raises(QueueFullError, match=r"holds 5 of at most 5 tiles: 1 more do not fit") as caught:
        scheduler.submit(FakeJob("c"))
    assert caught.value.details == {"queued_units": 5, "max_queued_units": 5, "retry_after_s": 0.0}
    scheduler.step()  # 4 of 5 units have run, and none is finished
    with pytest.raises(QueueFullError) as caught:
        scheduler.submit(FakeJob("c"))
    assert caught.value.details["retry_after_s"] == 1.25  # 5 units at 1 s for 4
    b.cancel()
    c = scheduler.submit(FakeJob("c", 2))
    assert a.result() and c.result()
    assert scheduler.stats().rejected == 2
    assert scheduler.stats().queued_units == 0


def test_larger_than_the_queue() -> None:
    """Any size runs: alone in the queue."""
    scheduler, _, _ = inline(max_queued_units=5)
    small = scheduler.submit(FakeJob("small"))
    with pytest.raises(QueueFullError):
        scheduler.submit(FakeJob("large", 9))
    small.result()
    large = scheduler.submit(FakeJob("large", 9))
    with pytest.raises(QueueFullError):
        scheduler.submit(FakeJob("small"))
    assert len(large.result()) == 9


@pytest.mark.parametrize(
    ("units", "key", "error"), [(0, "key", ValueError), (-1, "key", ValueError), (1, [], TypeError)]
)
def test_bad_jobs(units: int, key: object, error: type[Exception]) -> None:
    scheduler, _, _ = inline()
    with pytest.raises(error):
        scheduler.submit(FakeJob("a", units, key=key))  # type: ignore[arg-type]
    assert scheduler.stats().submitted == 0


def test_stats() -> None:
    scheduler, runner, _ = inline(bulk_share=1.0)
    scheduler.submit(FakeJob("a", 6))
    scheduler.submit(FakeJob("bad", faults={"finish": ""}))
    scheduler.submit(FakeJob("cancelled")).cancel()
    scheduler.submit(FakeJob("late"), deadline=-1)
    seen = scheduler.stats()
    assert (seen.submitted, seen.cancelled, seen.queued_units, seen.waiting_units) == (4, 1, 8, 8)
    scheduler.step()
    seen = scheduler.stats()
    assert (seen.expired, seen.queued_units, seen.waiting_units, seen.units_run) == (1, 7, 3, 4)
    assert scheduler.drain()
    with pytest.raises(DrainingError):
        scheduler.submit(FakeJob())
    seen = scheduler.stats()
    assert (seen.completed, seen.failed, seen.rejected) == (1, {"internal": 1}, 1)
    assert (seen.queued_units, seen.waiting_units, seen.batch_sizes) == (0, 0, {3: 1, 4: 1})
    assert (seen.busy_seconds, seen.batch_limit) == (runner.clock.now, None)
