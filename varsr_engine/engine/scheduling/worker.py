"""What the engine thread does: form a batch, run it, hand out its outputs, and find who is to blame when it fails."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from varsr_engine.engine.scheduling.backlog import Request, Row
from varsr_engine.engine.scheduling.batch_limit import BatchLimit
from varsr_engine.engine.scheduling.failures import attempt, for_caller, is_out_of_memory, parts_to_retry
from varsr_engine.engine.scheduling.ledger import Ledger
from varsr_engine.engine.scheduling.protocol import Abandoned, Event, Job, Runner
from varsr_engine.errors import EngineDeadError, RequestCancelled

logger = logging.getLogger(__name__)


def with_jobs(rows: list[Row]) -> list[tuple[Request, Job[Any], int]]:
    """The units of requests that are not resolved, with their jobs."""
    return [(request, job, index) for request, index in rows if (job := request.job) is not None]


class Worker:
    """One step at a time, by one thread at a time: what only steps touch needs no lock."""

    def __init__(self, runner: Runner, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._runner, self._ledger, self._clock = runner, ledger, clock
        self._retries: deque[list[Row]] = deque()  # parts of failed batches: each runs by itself, before others
        self._finishing: deque[Request] = deque()  # all units complete
        self.limit = BatchLimit()
        self.progress: tuple[float, str] | None = None  # when and where it was last seen; None: idle

    def step(self) -> bool:
        """Finish one request, or run one batch; False if there was neither.

        Raises only what neither a job nor the runner is to blame for, and what is no Exception.
        """
        self._ledger.expire(self._clock())
        while self._finishing:
            if self._finish(self._finishing.popleft()):
                return True
        rows = self._next_batch()
        if rows:
            self._run(rows)
        return bool(rows)

    def _next_batch(self) -> list[Row]:
        """Units of one key, as many as fit: of a batch that failed, else of whose turn it is."""
        while self._retries:
            rows = [row for row in self._retries.popleft() if not row[0].done]
            if rows:
                most = self._most(rows[0][0])
                if rows[most:]:
                    self._retries.appendleft(rows[most:])
                return rows[:most]
        ledger = self._ledger
        while True:
            with ledger.lock:
                first = ledger.backlog.first()
            if first is None:
                return []
            most = self._most(first)
            with ledger.lock:
                rows = ledger.backlog.take(first.key, most)
            if rows:  # else all of that key were cancelled meanwhile
                return rows

    def _most(self, request: Request) -> int:
        """How many units of its key may run at once."""
        return self.limit.allowed(self._runner.max_batch(request.key))

    def _run(self, rows: list[Row]) -> None:
        batch = with_jobs(rows)
        rows = [(request, index) for request, _, index in batch]
        if not rows:  # cancelled meanwhile
            return
        with self._busy("start", len(rows)):
            units = [(job, index) for _, job, index in batch]
            outputs, error = attempt(self._runner.run, units, partial(self._checkpoint, rows))
        if outputs is not None and len(outputs) != len(rows):
            error = RuntimeError(f"the runner gave {len(outputs)} outputs for {len(rows)} units")
        if outputs is None or error is not None:
            del batch, units, outputs  # before memory is reclaimed
            self._batch_failed(rows, error or RuntimeError("the runner gave no outputs"))
            return
        self.limit.fitted(len(rows), self._runner.max_batch(rows[0][0].key))
        for n, (request, job, index) in enumerate(batch):
            if request.done:
                continue
            _, error = attempt(job.complete, index, outputs[n])
            if error is not None:
                if not isinstance(error, Exception):
                    self._retries.appendleft(rows[n + 1 :])
                self._blame(request, error)
                continue
            request.complete += 1
            if request.complete == request.units:
                self._finishing.append(request)

    def _checkpoint(self, rows: list[Row], stage: str, row: Callable[[int], Any] | None = None) -> None:
        now = self._clock()
        self.progress = now, stage
        self._ledger.expire(now)
        if all(request.done for request, _ in rows):
            raise Abandoned
        for n, (request, index) in enumerate(rows):
            job = request.job
            if not request.events or job is None:
                continue
            preview = None
            if row is not None:
                try:
                    preview = job.preview(stage, index, row(n))
                except Exception:  # a preview never decides what becomes of its request
                    logger.warning("a preview after %s failed", stage, exc_info=True)
            request.handle.emit(Event(stage, index, request.units, preview))

    def _batch_failed(self, rows: list[Row], error: BaseException) -> None:
        memory = is_out_of_memory(error)
        if memory:
            self.limit.too_large(len(rows))
        if isinstance(error, Abandoned):
            return
        if not isinstance(error, Exception):  # without a thread the host's own, such as KeyboardInterrupt
            self._retries.appendleft(rows)  # it may go on
            raise error
        if isinstance(error, EngineDeadError):
            self._ledger.die(error)
        elif len(rows) == 1:
            self._blame(rows[0][0], error)
        elif memory:
            self._retries.appendleft(rows)  # of which as many run next as now may fit
        else:
            self._retries.extendleft(reversed(parts_to_retry(rows, error)))
        if memory:
            self._runner.reclaim()

    def _finish(self, request: Request) -> bool:
        """False if the request was resolved already."""
        job = request.job
        if job is None:
            return False
        with self._busy("finish"):
            result, error = attempt(job.finish)
        del job  # nothing here refers to it when its caller hears of the result
        if error is None:
            self._ledger.succeed(request, result)
        else:
            self._blame(request, error)
        return True

    def _blame(self, request: Request, error: BaseException) -> None:
        """An error is the request's own, unless it says that the device is lost or that the host interrupts."""
        if isinstance(error, EngineDeadError):
            self._ledger.die(error)
        elif isinstance(error, Exception):
            self._ledger.fail(request, for_caller(error))
        else:
            self._ledger.fail(request, RequestCancelled(f"the request was interrupted by {type(error).__name__}"))
            raise error

    @contextmanager
    def _busy(self, stage: str, units: int = 0) -> Iterator[None]:
        """Counts the time within, and a batch of `units`; the watchdog looks at its progress."""
        start = self._clock()
        self.progress = start, stage
        try:
            yield
        finally:
            self.progress = None
            counters = self._ledger.counters
            with self._ledger.lock:
                counters.busy_seconds += self._clock() - start
                counters.units_run += units
                if units:
                    counters.batch_sizes[units] += 1
