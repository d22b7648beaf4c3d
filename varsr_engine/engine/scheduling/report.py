"""What a scheduler tells of itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

State = Literal["open", "draining", "closed", "dead"]


@dataclass(frozen=True, slots=True)
class Health:
    """ok: requests that were taken will be answered. New ones are taken in state "open" alone."""

    ok: bool
    state: State
    reason: str = ""  # why it is not ok


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts since the start. Of those submitted, what is not completed, failed, cancelled or expired is live."""

    submitted: int
    completed: int
    failed: dict[str, int]  # by error code
    cancelled: int
    expired: int
    rejected: int  # refused by submit: the queue was full, or the engine draining, closed or dead
    queued_units: int  # of live requests: what the queue's bound counts
    waiting_units: int  # of those, in no batch yet
    units_run: int
    batch_sizes: dict[int, int]  # how many batches had each size, failed ones included
    batch_limit: int | None  # after an error of memory; None: the runner's
    busy_seconds: float  # in batches and finishes


@dataclass(slots=True)
class Counters:
    """The counts as they grow, under the scheduler's lock."""

    submitted: int = 0
    completed: int = 0
    cancelled: int = 0
    expired: int = 0
    rejected: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    batch_sizes: Counter[int] = field(default_factory=Counter)
    units_run: int = 0
    busy_seconds: float = 0.0
