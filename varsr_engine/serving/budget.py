"""How much of the machine all requests together may hold."""

from __future__ import annotations

import threading

from varsr_engine.serving.errors import BusyError

BYTES_A_PIXEL = 16  # of a picture: float32 RGB, and its samples or alpha


class MemoryBudget:
    """Bytes that may be held at a time. Whoever is alone may exceed it: its own limits bound what one request takes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.lock = threading.Lock()
        self.held = 0

    def hold(self) -> Hold:
        return Hold(self)


class Hold:
    """What one request holds of a budget, from any thread, until `release`."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._bytes = 0
        self._released = False

    def add(self, count: int) -> None:
        """Hold `count` bytes more; nothing once released. Raises BusyError where others hold too much."""
        budget = self._budget
        with budget.lock:
            if self._released:
                return
            alone = self._bytes == budget.held
            if not alone and budget.held + count > budget.limit:
                raise BusyError("the server holds as many images as its memory budget allows", retry_after_s=1)
            budget.held += count
            self._bytes += count

    def release(self) -> None:
        """Hold nothing from now on. Again: no effect."""
        with self._budget.lock:
            self._released = True
            self._budget.held -= self._bytes
            self._bytes = 0
