"""With a thread: callers from everywhere, event loops, drain, close, the watchdog, forks, and no thread left behind."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.engine.scheduling.fakes import SCALES, FakeJob, FakeRunner, Poison
from varsr_engine.engine.scheduling import Handle, Scheduler
from varsr_engine.errors import (
    DeadlineExceededError,
    DrainingError,
    EngineDeadError,
    QueueFullError,
    RequestCancelled,
    VarsrError,
)

PATIENT = 20.0  # seconds for what takes none: only a deadlock waits that long


class GatedRunner(FakeRunner):
    """Stands still at its checkpoints while the gate is closed."""

    def __init__(self, largest: int = 4) -> None:
        super().__init__(largest=largest)
        self.gate, self.running = threading.Event(), threading.Event()
        self.on_scale = self.wait

    def wait(self) -> None:
        self.running.set()
        assert self.gate.wait(PATIENT)


@pytest.fixture
def gated() -> Iterator[tuple[Scheduler, GatedRunner]]:
    runner = GatedRunner()
    with Scheduler(runner) as scheduler:
        yield scheduler, runner
        runner.gate.set()


def threads_named(name: str) -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == name]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_sixteen_threads() -> None:
    """Two seconds of submits, cancels and faults from 16 threads: each request is resolved once, as it should be."""
    runner = FakeRunner(largest=8)
    scheduler = Scheduler(runner, max_queued_units=64)
    resolved: Counter[int] = Counter()
    outcomes: Counter[str] = Counter()
    failures: list[BaseException] = []
    end = time.monotonic() + 2

    def check(job: FakeJob, handle: Handle[Any], cancelled: bool) -> str:
        error = handle.exception(PATIENT)
        assert max(job.completed.values(), default=0) <= 1 and job.finished <= 1
        if error is None:
            assert handle.result() == job.expected and not cancelled and not job.faults
        elif isinstance(error, RequestCancelled):
            assert cancelled
        else:
            assert job.faults and isinstance(error, Poison), error
        return type(error).__name__

    def client(seed: int) -> None:
        draw, n = random.Random(seed), 0
        while time.monotonic() < end:
            n += 1
            faults: dict[int | str, str] = {0: "raise"} if draw.random() < 0.1 else {}
            job = FakeJob((seed, n), draw.choice([1, 1, 1, 5]), key=draw.choice("AB"), faults=faults)
            try:
                handle = scheduler.submit(job, events=draw.random() < 0.2)
            except QueueFullError:
                outcomes["QueueFullError"] += 1
                time.sleep(0.001)
                continue
            handle.add_done_callback(lambda h: resolved.update([id(h)]))
            keep.append(handle)
            cancelled = draw.random() < 0.3 and handle.cancel()
            outcomes[check(job, handle, cancelled)] += 1

    keep: list[Handle[Any]] = []  # so that no id is used twice

    def guarded(seed: int) -> None:
        try:
            client(seed)
        except BaseException as error:
            failures.append(error)

    clients = [threading.Thread(target=guarded, args=(seed,)) for seed in range(16)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join(PATIENT)
    assert not failures
    assert scheduler.drain(PATIENT)
    stats = scheduler.stats()
    assert set(resolved.values()) == {1} and len(resolved) == stats.submitted == len(keep)
    assert stats.queued_units == 0
    assert min(outcomes[kind] for kind in ("NoneType", "Poison", "RequestCancelled")) > 10, outcomes
    assert max(stats.batch_sizes) > 1
    scheduler.close(PATIENT)
    print(outcomes, stats)


def test_thread_starts_with_the_first_submit_and_ends_with_close() -> None:
    scheduler = Scheduler(FakeRunner(), name="test-life")
    assert not threads_named("test-life")
    scheduler.submit(FakeJob()).result(PATIENT)
    (thread,) = threads_named("test-life")
    assert thread.daemon
    scheduler.close()
    scheduler.close()
    assert not thread.is_alive()
    assert scheduler.health().state == "closed" and not scheduler.health().ok
    with pytest.raises(DrainingError, match="closed"):
        scheduler.submit(FakeJob())
    assert not threads_named("test-life")


def test_close_without_a_submit() -> None:
    Scheduler(FakeRunner()).close()


def test_forgotten_scheduler_takes_its_thread_along() -> None:
    scheduler = Scheduler(FakeRunner(), name="test-forgotten")
    handle = scheduler.submit(FakeJob())
    handle.result(PATIENT)
    (thread,) = threads_named("test-forgotten")
    gone = weakref.ref(scheduler)
    del scheduler
    assert handle.done()
    del handle
    thread.join(PATIENT)
    gc.collect()
    assert gone() is None and not thread.is_alive()


def test_close_cancels(gated: tuple[Scheduler, GatedRunner]) -> None:
    scheduler, runner = gated
    runs = scheduler.submit(FakeJob("runs", key=1))
    waits = scheduler.submit(FakeJob("waits", key=2))
    assert runner.running.wait(PATIENT)
    scheduler.close(timeout=0)
    for handle in (runs, waits):
        with pytest.raises(RequestCancelled, match="closed"):
            handle.result(timeout=0)
    runner.gate.set()
    scheduler.close(PATIENT)
    assert len(runner.batches) == 1 and runner.stages == 1  # abandoned at its first checkpoint


def test_drain(gated: tuple[Scheduler, GatedRunner]) -> None:
    scheduler, runner = gated
    handles = [scheduler.submit(FakeJob(n, 3)) for n in range(3)]
    assert not scheduler.drain(timeout=0.01)
    with pytest.raises(DrainingError, match="draining"):
        scheduler.submit(FakeJob())
    health = scheduler.health()
    assert health.ok and health.state == "draining"
    runner.gate.set()
    assert scheduler.drain(PATIENT)
    assert all(handle.done() and handle.exception() is None for handle in handles)


def test_result_times_out(gated: tuple[Scheduler, GatedRunner]) -> None:
    scheduler, runner = gated
    handle = scheduler.submit(FakeJob())
    for _ in range(3):
        with pytest.raises(TimeoutError, match="no result within"):
            handle.result(timeout=0.001)
    assert not handle._waiting  # nothing piles up
    runner.gate.set()
    assert handle.result(PATIENT) == [("job", 0)]


def test_step_is_not_for_it(gated: tuple[Scheduler, GatedRunner]) -> None:
    with pytest.raises(RuntimeError, match="threaded=False"):
        gated[0].step()


def test_waiting_on_the_engine_thread_is_refused() -> None:
    refused: list[BaseException] = []

    class Job(FakeJob):
        def finish(self) -> list[Any]:
            try:
                scheduler.submit(FakeJob()).result()
            except RuntimeError as error:
                refused.append(error)
            return super().finish()

    with Scheduler(FakeRunner()) as scheduler:
        scheduler.submit(Job()).result(PATIENT)
    assert len(refused) == 1


def test_mistake_of_the_scheduler_ends_the_thread() -> None:
    class Runner(FakeRunner):
        def max_batch(self, key: object) -> int:
            raise SystemExit

    scheduler = Scheduler(Runner(), name="test-dead")
    with pytest.raises(EngineDeadError, match="the scheduler failed: SystemExit"):
        scheduler.submit(FakeJob()).result(PATIENT)
    with pytest.raises(EngineDeadError):
        scheduler.submit(FakeJob())
    scheduler.close(PATIENT)
    assert scheduler.health().state == "dead" and not threads_named("test-dead")


def test_watchdog(gated: tuple[Scheduler, GatedRunner]) -> None:
    _, runner = gated
    now = [0.0]
    with Scheduler(runner, clock=lambda: now[0], stall_seconds=5) as scheduler:
        assert scheduler.health().ok
        handle = scheduler.submit(FakeJob())
        assert runner.running.wait(PATIENT)
        now[0] = 4.0
        assert scheduler.health().ok
        now[0] = 6.0
        health = scheduler.health()
        assert not health.ok and health.reason == "no checkpoint for 6.0 s, since 'start'"
        runner.gate.set()
        handle.result(PATIENT)
        wait_until(lambda: scheduler.health().ok)


def test_events_of_a_thread(gated: tuple[Scheduler, GatedRunner]) -> None:
    scheduler, runner = gated
    handle = scheduler.submit(FakeJob("a"), events=True)
    events = handle.events()
    runner.gate.set()
    got = list(events)
    assert [e.stage for e in got[:-1]] == [f"scale.{k}" for k in range(SCALES)]
    assert got[-1] == [("a", 0)]


# --- event loops


def test_await() -> None:
    async def main(scheduler: Scheduler) -> None:
        handles = [scheduler.submit(FakeJob(n, n + 1)) for n in range(5)]
        assert [len(r) for r in await asyncio.gather(*handles)] == [1, 2, 3, 4, 5]
        assert await handles[0] == [(0, 0)]  # again
        with pytest.raises(Poison):
            await scheduler.submit(FakeJob("bad", faults={0: "raise"}))
        with pytest.raises(DeadlineExceededError):
            await scheduler.submit(FakeJob(), deadline=0)
        cancelled = scheduler.submit(FakeJob(units=50))
        assert cancelled.cancel()
        with pytest.raises(RequestCancelled):
            await cancelled

    for threaded in (True, False):
        with Scheduler(FakeRunner(), threaded=threaded) as scheduler:
            for _ in range(2):  # no affinity to a loop
                asyncio.run(main(scheduler))


def test_a_handle_in_two_loops(gated: tuple[Scheduler, GatedRunner]) -> None:
    scheduler, runner = gated
    handle = scheduler.submit(FakeJob())
    results: list[Any] = []

    async def main() -> None:
        results.append(await handle)

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(handle._waiting) == 2)
    runner.gate.set()
    for thread in threads:
        thread.join(PATIENT)
    assert results == [[("job", 0)]] * 2


def test_cancelled_task_cancels_the_request(gated: tuple[Scheduler, GatedRunner]) -> None:
    scheduler, runner = gated

    async def main() -> None:
        handle = scheduler.submit(FakeJob())
        await asyncio.to_thread(runner.running.wait, PATIENT)

        async def wait() -> Any:
            return await handle

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert isinstance(handle.exception(0), RequestCancelled)

        handle = scheduler.submit(FakeJob())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(handle, 0.01)
        assert isinstance(handle.exception(0), RequestCancelled)

        async def follow() -> None:
            async for _ in handle.aevents():
                pass

        handle = scheduler.submit(FakeJob(), events=True)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(follow(), 0.01)
        assert isinstance(handle.exception(0), RequestCancelled)

    asyncio.run(main())


def test_loop_that_is_gone(gated: tuple[Scheduler, GatedRunner]) -> None:
    """The engine does not mind a waiter whose loop was closed."""
    scheduler, runner = gated
    handle = scheduler.submit(FakeJob())
    loop = asyncio.new_event_loop()
    waiting = handle.__await__()
    loop.call_soon(lambda: waiting.send(None))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert len(handle._waiting) == 1
    runner.gate.set()
    assert handle.result(PATIENT) == [("job", 0)]
    assert scheduler.submit(FakeJob("next")).result(PATIENT) == [("next", 0)]
    waiting.close()


@pytest.mark.parametrize("threaded", [True, False])
def test_async_events(threaded: bool) -> None:
    async def main(scheduler: Scheduler) -> None:
        got = [item async for item in scheduler.submit(FakeJob("a"), events=True).aevents()]
        assert [e.stage for e in got[:-1]] == [f"scale.{k}" for k in range(SCALES)]
        assert got[-1] == [("a", 0)]
        with pytest.raises(Poison):
            async for _ in scheduler.submit(FakeJob("a", faults={"finish": ""}), events=True).aevents():
                pass

    with Scheduler(FakeRunner(), threaded=threaded) as scheduler:
        asyncio.run(main(scheduler))


def test_slow_async_consumer_still_gets_the_result() -> None:
    async def main(scheduler: Scheduler) -> None:
        handle = scheduler.submit(FakeJob("a", 5), events=True)
        got = []
        async for item in handle.aevents():
            got.append(item)
            await asyncio.to_thread(handle.exception, PATIENT)
        assert got[-1] == [("a", n) for n in range(5)]
        assert len(got) <= 1 + 3 + 1 and handle.dropped_events >= 5 * SCALES - 4

    with Scheduler(FakeRunner(), max_events=3) as scheduler:
        asyncio.run(main(scheduler))


# --- other processes


def in_fork(scheduler: Scheduler, handle: Handle[Any], done: Handle[Any], answers: Any) -> None:
    seen: list[str] = [str(done.result())]
    for call in (lambda: scheduler.submit(FakeJob()), handle.result, handle.cancel, scheduler.drain, scheduler.stats):
        try:
            call()
            seen.append("nothing")
        except VarsrError as error:
            seen.append(error.message)
    health = scheduler.health()
    seen.append(f"{health.ok} {health.reason}")
    scheduler.close()
    answers.put((os.getpid(), seen))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_fork_says_so_instead_of_hanging(gated: tuple[Scheduler, GatedRunner]) -> None:
    """Even where the fork happens while a lock is held."""
    scheduler, runner = gated
    runner.gate.set()
    done = scheduler.submit(FakeJob("done"))
    done.result(PATIENT)
    runner.gate.clear()
    handle = scheduler.submit(FakeJob())
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=in_fork, args=(scheduler, handle, done, answers))
    with scheduler._ledger.lock:
        child.start()
    child.join(PATIENT)
    assert child.exitcode == 0
    pid, seen = answers.get()
    assert seen[0] == "[('done', 0)]"
    for message in seen[1:]:
        assert f"belongs to process {os.getpid()}" in message and f"the fork {pid}" in message
    assert seen[-1].startswith("False")
    runner.gate.set()
    assert handle.result(PATIENT) == [("job", 0)]
