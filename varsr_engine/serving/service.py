"""What all routes share: the engine, the settings, the threads that images are read and written in, the jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from varsr_engine.engine.engine import Engine
from varsr_engine.serving.budget import MemoryBudget
from varsr_engine.serving.jobs import JobStore
from varsr_engine.serving.lifecycle import Lifecycle
from varsr_engine.serving.metrics import Metrics
from varsr_engine.serving.settings import ServerSettings

T = TypeVar("T")


class Service:
    """One server's state. `start` and `close` are called by the application's lifespan."""

    def __init__(self, lifecycle: Lifecycle, settings: ServerSettings) -> None:
        self.lifecycle, self.settings = lifecycle, settings
        self.budget = MemoryBudget(settings.max_held_bytes)
        self.metrics = Metrics(lifecycle.loaded, self.budget)
        self.jobs = JobStore(settings)
        self.in_flight = 0  # requests that a drain waits for; of the event loop alone
        self.decoding = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="varsr-decode")
        self.encoding = ThreadPoolExecutor(settings.encode_threads, thread_name_prefix="varsr-encode")

    def start(self) -> None:
        self.lifecycle.start()

    def engine(self) -> Engine:
        """The warm engine, or the error that says why there is none."""
        return self.lifecycle.engine()

    def drain(self) -> None:
        """Take nothing new; jobs end now, requests in flight go on."""
        self.lifecycle.drain()
        self.jobs.cancel_all()

    def give_up(self) -> None:
        """End what a drain waited for: those requests fail with DrainingError."""
        self.lifecycle.close()

    @property
    def drained(self) -> bool:
        return self.lifecycle.state in ("draining", "closed", "failed") and self.in_flight == 0

    def close(self) -> None:
        self.jobs.close()
        self.decoding.shutdown(wait=False, cancel_futures=True)
        self.encoding.shutdown(wait=False, cancel_futures=True)
        self.lifecycle.close()


async def in_thread(
    pool: ThreadPoolExecutor, function: Callable[[], T], undo: Callable[[T], object] | None = None
) -> T:
    """function() on a thread of the pool. If the waiting task is cancelled, `undo` takes back a result that comes."""
    future = pool.submit(function)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if undo is not None:
            future.add_done_callback(lambda done: _undo(done, undo))
        raise


def _undo(done: Future[T], undo: Callable[[T], object]) -> None:
    if not done.cancelled() and done.exception() is None:
        undo(done.result())
