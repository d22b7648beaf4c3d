"""Every request between its submission and its resolution, and the state in which new ones are taken or not.

`lock` guards all that is here and the backlog; it is held for bookkeeping alone: never while a job, the runner or a
callback runs, and never together with a handle's lock.

Whoever takes a request's job out of it under the lock resolves it: that happens once, and from then on nothing here
refers to the job. The queue's room is free before the caller hears of it.
"""

from __future__ import annotations

import logging
import math
import threading
from typing import Any

from varsr_engine.engine.scheduling.backlog import Backlog, Request
from varsr_engine.engine.scheduling.failures import error_code, without_frames
from varsr_engine.engine.scheduling.handle import Handle
from varsr_engine.engine.scheduling.report import Counters, State
from varsr_engine.errors import (
    DeadlineExceededError,
    DrainingError,
    EngineDeadError,
    QueueFullError,
    RequestCancelled,
)

logger = logging.getLogger(__name__)


class Ledger:
    """Live requests: admission, resolution, deadlines and counts. Called from any thread."""

    def __init__(self, max_queued_units: int, bulk_share: float) -> None:
        self._max_queued_units = max_queued_units
        self.lock = threading.Lock()
        self.backlog = Backlog(bulk_share)
        self.counters = Counters()
        self.queued_units = 0  # of unresolved requests, running units included
        self.state: State = "open"
        self.reason = ""  # why it is dead
        self._live: dict[Handle[Any], Request] = {}  # until the handle has heard, in order of submission
        self._all_delivered = threading.Condition(self.lock)
        self._next_deadline = math.inf  # no live request's is earlier

    # --- admission

    def admit(self, request: Request) -> None:
        """Raises QueueFullError, DrainingError or EngineDeadError."""
        with self.lock:
            refusal = self._refusal(request.units)
            if refusal is not None:
                self.counters.rejected += 1
                raise refusal
            self.backlog.add(request)
            self._live[request.handle] = request
            self.queued_units += request.units
            self.counters.submitted += 1
            if request.deadline is not None:
                self._next_deadline = min(self._next_deadline, request.deadline)

    def _refusal(self, units: int) -> EngineDeadError | DrainingError | QueueFullError | None:
        if self.state == "dead":
            return EngineDeadError(self.reason)
        if self.state != "open":
            return DrainingError(f"the engine is {self.state} and takes no new requests")
        # A request that is larger than the bound still runs: when there is no other.
        if self.queued_units == 0 or self.queued_units + units <= self._max_queued_units:
            return None
        pace = self.counters.busy_seconds / max(1, self.counters.units_run)
        return QueueFullError(
            f"the queue holds {self.queued_units} of at most {self._max_queued_units} tiles: {units} more do not fit",
            queued_units=self.queued_units,
            max_queued_units=self._max_queued_units,
            retry_after_s=round(pace * self.queued_units, 3),
        )

    # --- resolution

    def succeed(self, request: Request, result: Any) -> None:
        if self._take(request):
            with self.lock:
                self.counters.completed += 1
            self._deliver(request, (result, None))

    def fail(self, request: Request, error: BaseException) -> bool:
        """False if the request was resolved already."""
        if not self._take(request):
            return False
        with self.lock:
            if isinstance(error, RequestCancelled):
                self.counters.cancelled += 1
            elif isinstance(error, DeadlineExceededError):
                self.counters.expired += 1
            else:
                self.counters.failed[error_code(error)] += 1
        self._deliver(request, (None, error))
        return True

    def cancel(self, handle: Handle[Any]) -> bool:
        with self.lock:
            request = self._live.get(handle)
        return request is not None and self.fail(request, RequestCancelled("the request was cancelled"))

    def expire(self, now: float) -> None:
        """Resolve whose deadline has passed. Costs nothing before the next one has."""
        if now < self._next_deadline:
            return
        with self.lock:
            timed = [(r, r.deadline) for r in self._live.values() if r.deadline is not None and not r.done]
            self._next_deadline = min((d for _, d in timed if d > now), default=math.inf)
        for request, deadline in timed:
            if deadline <= now:
                late = f"the deadline passed {now - deadline:.3f} s ago, before the result was ready"
                self.fail(request, DeadlineExceededError(late))

    def _take(self, request: Request) -> bool:
        """Take the job out of a request and free its room; True for the one caller that may resolve it."""
        with self.lock:
            job, request.job = request.job, None  # `job` dies after the lock: its __del__ may be anything
            if job is not None:
                self.backlog.remove(request)
                self.queued_units -= request.units
        return job is not None

    def _deliver(self, request: Request, outcome: tuple[Any, None] | tuple[None, BaseException]) -> None:
        try:
            request.handle.deliver(outcome)
        finally:
            with self.lock:
                del self._live[request.handle]
                if not self._live:
                    self._all_delivered.notify_all()

    # --- the end

    def drain(self) -> None:
        """Refuse new requests from now on."""
        with self.lock:
            if self.state == "open":
                self.state = "draining"

    def empty(self) -> bool:
        """Whether every caller has heard."""
        return not self._live

    def wait_empty(self, timeout: float | None) -> bool:
        with self.lock:
            return self._all_delivered.wait_for(self.empty, timeout)

    def close(self) -> None:
        """Cancel what is left, and refuse new requests."""
        with self.lock:
            if self.state != "dead":
                self.state = "closed"
            left = list(self._live.values())
        for request in left:
            self.fail(request, RequestCancelled("the engine was closed"))

    def die(self, error: BaseException) -> EngineDeadError:
        """Fail what is left, and refuse new requests, because nothing can run any more."""
        known = isinstance(error, EngineDeadError)
        with self.lock:
            first = self.state != "dead"
            if first:
                self.state = "dead"
                self.reason = str(error) if known else f"the scheduler failed: {type(error).__name__}: {error}"
            left = list(self._live.values())
        if first:
            logger.error("the engine is dead: %s", self.reason, exc_info=error)
        without_frames(error)
        for request in left:
            self.fail(request, EngineDeadError(self.reason))  # an error each: several threads raise them
        return EngineDeadError(self.reason)
