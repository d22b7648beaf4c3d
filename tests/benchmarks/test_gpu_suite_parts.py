"""A part for the tests of benchmarks.gpu_suite: its items do what their names say. Imports no torch: it is quick."""

from __future__ import annotations

import os
import time
from functools import partial

from benchmarks.gpu_suite.settings import Settings
from benchmarks.gpu_suite.work import Clock, Item, NotRun, Result

NAME = __name__
NAMES = ("fine", "raises", "dies", "fine after", "not here", "slow", "hangs", "never reached")


def act(name: str) -> Result:
    if name == "raises":
        raise ValueError("planted")
    if name == "dies":
        os._exit(9)
    if name == "not here":
        raise NotRun("no such thing on this device")
    if name in ("slow", "hangs"):
        time.sleep(0.2 if name == "slow" else 60)
    return {"value": len(name)}


def items(settings: Settings, clock: Clock) -> list[Item]:
    return [Item(name, partial(act, name)) for name in NAMES]
