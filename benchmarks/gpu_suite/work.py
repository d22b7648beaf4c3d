"""What a part is made of: named items, each run by itself, each giving a dictionary of results."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]  # JSON; "status" is ok where it is missing


class NotRun(Exception):
    """This device, this torch or this version of the engine cannot do it: a note, no failure."""


@dataclass(frozen=True)
class Item:
    """One thing to measure. Items of a group share what is costly to make, and stay in one process.

    on_device: whether it uses the GPU at all; where not, its process makes no CUDA context.
    """

    name: str
    run: Callable[[], Result]
    group: str = ""
    on_device: bool = True


class Clock:
    """Seconds that are left to a part."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()
