"""The scheduler: one thread owns the device, and gives it the largest batch of what waits whenever it is free.

`submit`, `cancel`, `health` and `stats` may be called from any thread. The runner and the jobs are called by one thread
at a time, the engine thread: a daemon that starts at the first submit, or with threaded=False whoever calls `step`.
It ends with `close`, or when the scheduler is garbage: while idle it does not refer to it.

Locks: `Ledger.lock` for all that threads share, a lock a handle, and `_stepping`, which lets one thread step at a time
and is taken first. No other two are ever held together, and under none but `_stepping` does a job, the runner or a
callback run.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from varsr_engine.engine.scheduling.backlog import Request
from varsr_engine.engine.scheduling.handle import Handle
from varsr_engine.engine.scheduling.ledger import Ledger
from varsr_engine.engine.scheduling.protocol import Job, Runner
from varsr_engine.engine.scheduling.report import Health, Stats
from varsr_engine.engine.scheduling.worker import Worker
from varsr_engine.errors import EngineDeadError

R = TypeVar("R")


class Scheduler:
    """Runs jobs of many callers on one device; see the module for threads and locks."""

    def __init__(
        self,
        runner: Runner,
        *,
        max_queued_units: int = 256,
        bulk_share: float = 0.25,
        threaded: bool = True,
        clock: Callable[[], float] = time.monotonic,
        stall_seconds: float | None = None,
        max_events: int = 16,
        name: str = "varsr-engine",
    ) -> None:
        """max_queued_units: bound of the units of all live requests, running ones included. bulk_share: see `Backlog`.

        clock: of deadlines, busy time and the watchdog; waiting takes real time. stall_seconds: without a checkpoint
        for longer, `health` is bad. max_events: how many events a handle keeps for a slow consumer. name: the thread's.
        """
        self.threaded = threaded
        self._clock, self._name = clock, name
        self._stall_seconds, self._max_events = stall_seconds, max_events
        self._ledger = Ledger(max_queued_units, bulk_share)
        self._worker = Worker(runner, self._ledger, clock)
        self._pid = os.getpid()
        self._stepping = threading.Lock()
        self._stepper: int | None = None  # the thread in a step
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._work = threading.Event()
        weakref.finalize(self, self._work.set).atexit = False  # an idle thread wakes up, and ends

    # --- requests

    def submit(self, job: Job[R], *, deadline: float | None = None, events: bool = False) -> Handle[R]:
        """Queue a job. deadline: by the scheduler's clock. events: whether its handle gets an event a checkpoint.

        Raises QueueFullError where its units find no room (a job larger than the bound is taken by an empty
        queue), DrainingError, or EngineDeadError.
        """
        self._check_process()
        units, key = job.units, job.key
        hash(key)  # an unhashable key is the submitter's error
        if units < 1:
            raise ValueError(f"a job must have at least 1 unit, got {units}")
        handle: Handle[R] = Handle(self, self._max_events)
        request = Request(job, handle, key, units, deadline, events)
        self._ledger.admit(request)
        try:
            self._start_thread()
        except BaseException as error:  # no thread to be had: the interpreter shuts down, or a limit is reached
            self._ledger.fail(request, error)
            raise
        self._work.set()
        return handle

    def cancel(self, handle: Handle[Any]) -> bool:
        """`Handle.cancel`."""
        self._check_process()
        return self._ledger.cancel(handle)

    # --- the engine thread

    def step(self) -> bool:
        """With threaded=False: run one batch, or finish one request; False if there was nothing to do."""
        if self.threaded:
            raise RuntimeError("step() is for a scheduler with threaded=False: this one has a thread")
        self.check_may_wait()
        with self._stepping:
            try:
                return self._step()
            except Exception as error:
                raise self._ledger.die(error) from error

    def work_off(self) -> bool:
        """The engine thread's own: run all that waits; False when the thread shall end."""
        try:
            while self._ledger.state in ("open", "draining"):
                if not self._step():
                    return True
        except BaseException as error:
            self._ledger.die(error)
        return False

    def _step(self) -> bool:
        self._stepper = threading.get_ident()
        try:
            return self._worker.step()
        finally:
            self._stepper = None

    def _start_thread(self) -> None:
        with self._starting:
            if self.threaded and self._thread is None:
                thread = threading.Thread(
                    target=serve, args=(weakref.ref(self), self._work), name=self._name, daemon=True
                )
                thread.start()
                self._thread = thread

    # --- its life

    def drain(self, timeout: float | None = None) -> bool:
        """Take nothing new from now on, and wait for all that was taken; False if `timeout` seconds did not suffice."""
        self.check_may_wait()
        self._ledger.drain()
        if self.threaded:
            return self._ledger.wait_empty(timeout)
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not self._ledger.empty():
            if time.monotonic() >= end:
                return False
            self.step()
        return True

    def close(self, timeout: float | None = None) -> None:
        """Cancel all that is not resolved, and wait `timeout` seconds for the thread to end. Again: no effect."""
        if os.getpid() != self._pid:  # in a fork there is no thread, and a lock may be held for ever
            return
        self._ledger.close()
        self._work.set()
        with self._starting:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # --- what it tells

    def health(self) -> Health:
        """Whether what was taken will be answered. Never waits for the device."""
        if os.getpid() != self._pid:
            return Health(False, "dead", self._forked())
        with self._ledger.lock:
            state, reason = self._ledger.state, self._ledger.reason
        if state in ("closed", "dead"):
            return Health(False, state, reason or "the engine is closed")
        progress = self._worker.progress
        if progress is not None and self._stall_seconds is not None:
            since, stage = progress
            idle = self._clock() - since
            if idle > self._stall_seconds:
                return Health(False, state, f"no checkpoint for {idle:.1f} s, since {stage!r}")
        return Health(True, state)

    def stats(self) -> Stats:
        self._check_process()
        ledger = self._ledger
        with ledger.lock:
            c = ledger.counters
            return Stats(
                submitted=c.submitted,
                completed=c.completed,
                failed=dict(c.failed),
                cancelled=c.cancelled,
                expired=c.expired,
                rejected=c.rejected,
                queued_units=ledger.queued_units,
                waiting_units=ledger.backlog.units,
                units_run=c.units_run,
                batch_sizes=dict(sorted(c.batch_sizes.items())),
                batch_limit=self._worker.limit.size,
                busy_seconds=c.busy_seconds,
            )

    def check_may_wait(self) -> None:
        """Raises where waiting for a request could never end: in a fork, or on the engine's own thread."""
        self._check_process()
        if self._stepper == threading.get_ident():
            raise RuntimeError("a job, the runner or a done callback must not wait for the scheduler that calls it")

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise EngineDeadError(self._forked())

    def _forked(self) -> str:
        return (
            f"this engine belongs to process {self._pid}; its thread and its device did not come along to the fork "
            f"{os.getpid()}: make the engine in the process that uses it, or start processes by 'spawn'"
        )


def serve(scheduler: weakref.ref[Scheduler], work: threading.Event) -> None:
    """The engine thread. Refers to its scheduler only while there is work: else it would keep it alive."""
    while True:
        work.wait()
        work.clear()
        alive = scheduler()
        if alive is None or not alive.work_off():
            return
        del alive
