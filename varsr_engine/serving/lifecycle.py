"""From loading to the last answer: which state a server is in, and what it may still take."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal, Protocol

from varsr_engine.engine.engine import Engine
from varsr_engine.errors import DrainingError, EngineDeadError
from varsr_engine.serving.errors import NotReadyError

State = Literal["loading", "warming", "ready", "draining", "failed", "closed"]


class EngineProvider(Protocol):
    """Where the routes get their engine from."""

    def engine(self) -> Engine:
        """The engine, warm. Raises NotReadyError, DrainingError or EngineDeadError where there is none to be had."""

    @property
    def state(self) -> State: ...


class Lifecycle:
    """An engine that is loaded and warmed up in a thread of its own, while the server answers already.

    States only go forward: loading, warming, ready, draining, closed; or failed, with `error`.
    """

    def __init__(self, load: Callable[[], Engine]) -> None:
        self._load = load
        self._engine: Engine | None = None
        self._lock = threading.Lock()
        self._state: State = "loading"
        self._thread: threading.Thread | None = None
        self._listeners: list[Callable[[], None]] = []
        self.error: BaseException | None = None

    @classmethod
    def of(cls, engine: Engine) -> Lifecycle:
        """That of an engine which is warm already. It stays its maker's, to close."""
        lifecycle = cls(lambda: engine)
        lifecycle._engine, lifecycle._state = engine, "ready"
        return lifecycle

    @property
    def state(self) -> State:
        return self._state

    def engine(self) -> Engine:
        """The warm engine; see `EngineProvider`."""
        if self._state == "ready" and self._engine is not None:
            return self._engine
        if self._state == "failed":
            raise EngineDeadError("the model could not be loaded")
        if self._state in ("draining", "closed"):
            raise DrainingError("the server is shutting down and takes no new requests", retry_after_s=5)
        raise NotReadyError(f"the model is {self._state}; try again soon", retry_after_s=5)

    def loaded(self) -> Engine | None:
        """The engine in whatever state, for what only looks at it; None before it is loaded."""
        return self._engine

    def start(self) -> None:
        """Begin to load. Again, or with an engine that is there: no effect."""
        with self._lock:
            if self._state == "loading" and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="varsr-loading", daemon=True)
                self._thread.start()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each change of state, on the thread that makes it."""
        self._listeners.append(listener)

    def drain(self) -> None:
        """Take nothing new from now on."""
        self._advance("draining", {"loading", "warming", "ready"})

    def close(self) -> None:
        """Close the engine that `start` loaded."""
        self._advance("closed", {"loading", "warming", "ready", "draining"})
        if self._thread is not None and self._engine is not None:
            self._engine.close(5)

    def _run(self) -> None:
        try:
            engine = self._load()
            self._engine = engine
            self._advance("warming", {"loading"})
            if self._state == "warming":
                engine.warmup()
            self._advance("ready", {"warming"})
        except BaseException as error:
            self.error = error
            self._advance("failed", {"loading", "warming"})

    def _advance(self, state: State, earlier: set[State]) -> None:
        with self._lock:
            if self._state not in earlier:
                return
            self._state = state
        for listener in self._listeners:
            listener()
