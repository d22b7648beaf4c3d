"""A submitted request as its caller sees it: wait for the result, await it, follow its events, cancel it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any, Generic, Protocol, TypeVar

from varsr_engine.engine.scheduling.protocol import Event

R = TypeVar("R")
Wake = Callable[[], None]

logger = logging.getLogger(__name__)


class Owner(Protocol):
    """What a handle asks of its scheduler."""

    threaded: bool

    def step(self) -> bool: ...

    def cancel(self, handle: Handle[Any], /) -> bool: ...

    def check_may_wait(self) -> None:
        """Raises where waiting could never end: in a fork, or on the engine's own thread."""


class Handle(Generic[R]):
    """A request's future. All methods may be called from any thread, and awaited in any event loop.

    Where the scheduler has no thread, whoever waits on a handle runs the scheduler's steps meanwhile.
    """

    def __init__(self, owner: Owner, max_events: int) -> None:
        self._owner = owner
        self._lock = threading.Lock()  # of the fields below; nothing else is called under it
        self._outcome: tuple[R, None] | tuple[None, BaseException] | None = None
        self._events: deque[Event] = deque(maxlen=max_events)
        self._dropped = 0
        self._waiting: list[Wake] = []  # each is called once, at the next change
        self._callbacks: list[Callable[[Handle[R]], object]] = []

    # --- the caller's side

    def done(self) -> bool:
        """Whether there is a result or an error."""
        return self._outcome is not None

    def result(self, timeout: float | None = None) -> R:
        """Wait for the result; raises the request's error, or TimeoutError after `timeout` seconds."""
        self._wait(self.done, timeout)
        return self._settled()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait; the request's error, None if it succeeded."""
        self._wait(self.done, timeout)
        assert self._outcome is not None
        return self._outcome[1]

    def cancel(self) -> bool:
        """Resolve the request with RequestCancelled now; False if it was resolved already.

        Its work stops at the next checkpoint, unless others share the batch.
        """
        return self._owner.cancel(self)

    def __await__(self) -> Generator[Any, None, R]:
        """The result. Cancelling the awaiting task cancels the request."""
        return self._async_result().__await__()

    def events(self) -> Iterator[Event | R]:
        """Events as they come, then the result; raises the request's error. For one consumer.

        Of events that are not taken in time the oldest are dropped (`dropped_events`), the result never is.
        """
        while True:
            self._wait(self._has_news, None)
            if (event := self._next_event()) is None:
                break
            yield event
        yield self._settled()

    async def aevents(self) -> AsyncIterator[Event | R]:
        """The same for an event loop. Cancelling the task that waits for the next event cancels the request."""
        while True:
            await self._async_wait(self._has_news)
            if (event := self._next_event()) is None:
                break
            yield event
        yield self._settled()

    @property
    def dropped_events(self) -> int:
        return self._dropped

    def add_done_callback(self, callback: Callable[[Handle[R]], object]) -> None:
        """Call callback(handle) once resolved, on the thread that resolves it, or now. It should be quick."""
        with self._lock:
            if self._outcome is None:
                self._callbacks.append(callback)
                return
        self._call(callback)

    # --- the scheduler's side

    def deliver(self, outcome: tuple[R, None] | tuple[None, BaseException]) -> None:
        """The outcome; called exactly once."""
        with self._lock:
            assert self._outcome is None
            self._outcome = outcome
            if outcome[1] is not None:
                self._events.clear()
            waiting, self._waiting = self._waiting, []
            callbacks, self._callbacks = self._callbacks, []
        for wake in waiting:
            wake()
        for callback in callbacks:
            self._call(callback)

    def emit(self, event: Event) -> None:
        """One event more, in place of the oldest where the consumer is slow."""
        with self._lock:
            if self._outcome is not None:
                return
            self._dropped += len(self._events) == self._events.maxlen
            self._events.append(event)
            waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()

    # --- waiting

    def _settled(self) -> R:
        assert self._outcome is not None
        result, error = self._outcome
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def _has_news(self) -> bool:
        return bool(self._events) or self._outcome is not None

    def _next_event(self) -> Event | None:
        with self._lock:
            return self._events.popleft() if self._events else None

    def _wait(self, ready: Callable[[], bool], timeout: float | None) -> None:
        if ready():
            return
        self._owner.check_may_wait()
        end = None if timeout is None else time.monotonic() + timeout
        while not ready():
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"no result within {timeout} s")
            if not self._owner.threaded:
                self._owner.step()
                continue
            changed = threading.Event()
            with self._woken(ready, changed.set) as registered:
                if registered:
                    changed.wait(left)

    async def _async_wait(self, ready: Callable[[], bool]) -> None:
        if ready():
            return
        self._owner.check_may_wait()
        loop = asyncio.get_running_loop()
        try:
            while not ready():
                if not self._owner.threaded:
                    self._owner.step()
                    await asyncio.sleep(0)
                    continue
                changed = loop.create_future()

                def wake(changed: asyncio.Future[None] = changed) -> None:
                    with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits there
                        loop.call_soon_threadsafe(settle, changed)

                with self._woken(ready, wake) as registered:
                    if registered:
                        await changed
        except asyncio.CancelledError:
            self.cancel()
            raise

    async def _async_result(self) -> R:
        await self._async_wait(self.done)
        return self._settled()

    @contextlib.contextmanager
    def _woken(self, ready: Callable[[], bool], wake: Wake) -> Iterator[bool]:
        """Within, `wake` is called at the next change; False if `ready` already."""
        with self._lock:
            registered = not ready()
            if registered:
                self._waiting.append(wake)
        try:
            yield registered
        finally:
            with self._lock:
                if wake in self._waiting:  # it timed out
                    self._waiting.remove(wake)

    def _call(self, callback: Callable[[Handle[R]], object]) -> None:
        try:
            callback(self)
        except Exception:
            logger.exception("a request's done callback failed")


def settle(future: asyncio.Future[None]) -> None:
    if not future.done():  # its task may have been cancelled meanwhile
        future.set_result(None)
