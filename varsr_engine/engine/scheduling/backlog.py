"""Who is next: requests take turns, one unit a turn, so that an image of many tiles does not hold up small ones."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from varsr_engine.engine.scheduling.handle import Handle
from varsr_engine.engine.scheduling.protocol import Job


@dataclass(slots=True, eq=False)
class Request:
    """A job between its submission and its resolution. Without its job it is a shell that holds no tensor."""

    job: Job[Any] | None  # None once resolved
    handle: Handle[Any]
    key: Hashable
    units: int
    deadline: float | None
    events: bool
    taken: int = 0  # units that were given to batches, in order
    complete: int = 0
    turn: int = 0

    @property
    def done(self) -> bool:
        return self.job is None


Row = tuple[Request, int]  # a unit of a batch

PROTECTED_BATCHES = 16  # after the last request of one unit was seen, others are expected for that many


class Backlog:
    """Requests with units that no batch has taken. Not thread-safe: the scheduler's lock guards it.

    Who has waited longest, since the last batch it was in or since it came, chooses the key of a batch and is its
    first unit; further units go round the requests of that key. Neither a request nor a key starves, not even beside
    an endless image with another key, and who comes while a batch runs is in the next before its members.

    bulk_share: of a batch that one request may fill while others of a single unit are about. Those wait for the batch
    that runs and for their own: both are shorter so, at a part of the throughput. Without them batches are filled.
    """

    def __init__(self, bulk_share: float = 1.0) -> None:
        self._bulk_share = bulk_share
        self._protect = 0  # batches that still leave room for requests of one unit
        self._queues: dict[Hashable, OrderedDict[Request, None]] = {}  # each in the order of turns
        self._served: list[Request] = []  # had units in the last batch, wait for more: they queue behind newcomers
        self._turns = itertools.count()
        self.units = 0

    def add(self, request: Request) -> None:
        self._queue(request)
        self.units += request.units

    def remove(self, request: Request) -> None:
        """Whether or not it still waits."""
        queue = self._queues.get(request.key, OrderedDict())
        if request in queue:
            del queue[request]
            if not queue:
                del self._queues[request.key]
        elif request in self._served:
            self._served.remove(request)
        else:
            return
        self.units -= request.units - request.taken

    def first(self) -> Request | None:
        """Whose turn it is."""
        for request in self._served:
            self._queue(request)
        self._served.clear()
        return min((next(iter(queue)) for queue in self._queues.values()), key=lambda r: r.turn, default=None)

    def take(self, key: Hashable, most: int) -> list[Row]:
        """The units of the next batch of a key."""
        self._protect = PROTECTED_BATCHES if self._single_waits() else max(0, self._protect - 1)
        share = max(1, int(most * self._bulk_share)) if self._protect else most
        queue = self._queues.pop(key, OrderedDict())
        rows: list[Row] = []
        given: dict[Request, int] = {}
        while queue and len(rows) < most:
            request, _ = queue.popitem(last=False)
            rows.append((request, request.taken))
            request.taken += 1
            given[request] = given.get(request, 0) + 1
            if request.taken < request.units and given[request] < share:
                queue[request] = None
        self.units -= len(rows)
        for request in given:
            queue.pop(request, None)
            if request.taken < request.units:
                self._served.append(request)
        if queue:
            self._queues[key] = queue
        return rows

    def _single_waits(self) -> bool:
        return any(request.units == 1 for queue in self._queues.values() for request in queue)

    def _queue(self, request: Request) -> None:
        request.turn = next(self._turns)
        self._queues.setdefault(request.key, OrderedDict())[request] = None
