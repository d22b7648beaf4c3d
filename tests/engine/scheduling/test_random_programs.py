"""Random programs of submit, cancel, deadline, faults, memory, steps and drain: every request is resolved exactly once,
and as its own inputs say, whatever happened to the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.engine.scheduling.fakes import FakeJob, FakeRunner, Poison, VirtualClock, inline
from varsr_engine.engine.scheduling import Handle, Scheduler
from varsr_engine.errors import (
    DeadlineExceededError,
    DrainingError,
    NumericalError,
    QueueFullError,
    RequestCancelled,
    ResourceExhaustedError,
)

MAX_QUEUED = 20
UNIT_FAULTS = {"raise": Poison, "nan": NumericalError, "memory": ResourceExhaustedError, "complete": Poison}

small = st.integers(0, 7)
submissions = st.fixed_dictionaries(
    {
        "units": st.integers(1, 7),
        "key": st.sampled_from("AAAB"),
        "deadline": st.none() | st.floats(-1, 12, allow_nan=False),
        "faults": st.dictionaries(small, st.sampled_from(["raise", "once", "nan", "memory", "complete"]), max_size=1)
        | st.just({"finish": ""}),
        "events": st.booleans(),
    }
)
now = st.tuples(st.just("submit"), submissions) | st.tuples(st.just("cancel"), small)
memory = st.tuples(st.just("memory"), st.none() | st.integers(0, 4))
actions = (
    now
    | memory
    | st.tuples(st.just("advance"), st.floats(0, 3))
    | st.tuples(st.just("step"), st.just(1))
    | st.tuples(st.just("during"), st.lists(now, max_size=3))  # at the next checkpoints of a batch that runs
)
programs = st.lists(actions, min_size=1, max_size=40)


@dataclass
class Submitted:
    job: FakeJob
    handle: Handle[Any]
    deadline: float | None
    faults: dict[int | str, str]
    outcomes: int = 0
    resolved_at: float = -1.0
    cancelled: bool = False


@dataclass
class World:
    """Performs actions, and remembers what was promised."""

    scheduler: Scheduler
    runner: FakeRunner
    clock: VirtualClock
    requests: list[Submitted] = field(default_factory=list)
    during: list[tuple[str, Any]] = field(default_factory=list)
    rejected: int = 0

    def act(self, action: tuple[str, Any]) -> None:
        name, value = action
        getattr(self, f"do_{name}")(value)
        stats = self.scheduler.stats()
        live = [r for r in self.requests if not r.handle.done()]
        assert stats.queued_units == sum(r.job.units for r in live) <= MAX_QUEUED
        assert 0 <= stats.waiting_units <= stats.queued_units

    def do_submit(self, value: dict[str, Any]) -> None:
        faults = {k: v for k, v in value["faults"].items() if k == "finish" or k < value["units"]}
        job = FakeJob(len(self.requests), value["units"], key=value["key"], faults=faults)
        queued = self.scheduler.stats().queued_units
        try:
            handle = self.scheduler.submit(job, deadline=value["deadline"], events=value["events"])
        except QueueFullError:
            assert queued + job.units > MAX_QUEUED
            self.rejected += 1
            return
        assert queued + job.units <= MAX_QUEUED
        request = Submitted(job, handle, value["deadline"], faults)
        self.requests.append(request)

        def resolved(_: Handle[Any]) -> None:
            request.outcomes += 1
            request.resolved_at = self.clock.now

        handle.add_done_callback(resolved)

    def do_cancel(self, n: int) -> None:
        if n < len(self.requests):
            request = self.requests[n]
            was_done = request.handle.done()
            assert request.handle.cancel() is not was_done
            request.cancelled |= not was_done
            assert request.handle.done()

    def do_memory(self, most: int | None) -> None:
        self.runner.memory = most

    def do_advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def do_step(self, _: object) -> None:
        self.scheduler.step()

    def do_during(self, inner: list[tuple[str, Any]]) -> None:
        self.during = list(inner)
        self.scheduler.step()

    def at_checkpoint(self) -> None:
        if self.during:
            self.act(self.during.pop(0))

    def check(self, request: Submitted) -> None:
        """A resolved request against what its own inputs allow."""
        job, error = request.job, request.handle.exception()
        assert request.outcomes == 1
        assert max(job.completed.values(), default=0) <= 1 and job.finished <= 1
        if error is None:
            assert request.handle.result() == job.expected
            assert job.completed == dict.fromkeys(range(job.units), 1) and job.finished == 1
            assert not set(request.faults.values()) - {"once"} and not request.cancelled
            assert request.deadline is None or request.resolved_at < request.deadline
        elif isinstance(error, RequestCancelled):
            assert request.cancelled
        elif isinstance(error, DeadlineExceededError):
            assert request.deadline is not None and request.deadline <= request.resolved_at
        elif isinstance(error, ResourceExhaustedError) and self.was_full:
            pass
        elif "finish" in request.faults:
            assert isinstance(error, Poison) and job.finished == 1
        elif "once" in request.faults.values():  # it was alone when it failed: no batch-mate to blame
            assert isinstance(error, Poison)
        else:
            (fault,) = request.faults.values()
            assert isinstance(error, UNIT_FAULTS[fault]), (fault, error)
        event("completed" if error is None else type(error).__name__)

    was_full = False  # whether not even one unit fitted at some time


@given(programs, st.integers(1, 5))
@settings(max_examples=1000)
def test_every_request_is_resolved_once_and_as_its_own_inputs_say(program: list[Any], largest: int) -> None:
    scheduler, runner, clock = inline(FakeRunner(largest=largest), max_queued_units=MAX_QUEUED, max_events=3)
    world = World(scheduler, runner, clock)
    runner.on_scale = world.at_checkpoint
    for action in program:
        world.act(action)
        world.was_full |= runner.memory == 0
    world.during.clear()
    assert scheduler.drain(timeout=60)

    for request in world.requests:
        world.check(request)
    stats = scheduler.stats()
    assert stats.submitted == len(world.requests) and stats.rejected == world.rejected
    assert stats.submitted == stats.completed + stats.cancelled + stats.expired + sum(stats.failed.values())
    assert stats.queued_units == stats.waiting_units == 0
    assert sum(size * count for size, count in stats.batch_sizes.items()) == stats.units_run
    assert scheduler.health().ok and not scheduler.step()
    try:
        scheduler.submit(FakeJob())
    except DrainingError:
        return
    raise AssertionError("a drained scheduler took a job")
