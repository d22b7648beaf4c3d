"""One image of 64 tiles beside a stream of small ones, on a virtual clock: the small ones hardly wait for it."""

from __future__ import annotations

import functools
import random
from collections import OrderedDict
from collections.abc import Callable, Hashable

import pytest

from tests.engine.scheduling.fakes import FakeJob, FakeRunner, VirtualClock, inline
from varsr_engine.engine.scheduling import Handle
from varsr_engine.engine.scheduling.backlog import Backlog, Row

SMALL = 2000  # small requests a simulation

# Seconds of a batch, by its units. No real device's: the shapes that real ones have.
COSTS: dict[str, tuple[int, Callable[[int], float]]] = {
    "no gain from batches": (1, lambda units: 0.073 * units),
    "gain as in the design's simulation": (8, lambda units: 0.030 + 0.0375 * units),
    "twice the time for eight": (8, lambda units: 0.073 * (1 + (units - 1) / 7)),
}


def small_latencies(
    largest: int, seconds: Callable[[int], float], *, big_every: float | None, load: float, key: str = "small"
) -> list[float]:
    """Seconds from arrival to result of small ones that arrive at random, at `load` of what the device can do."""
    clock = VirtualClock()
    scheduler, runner, _ = inline(FakeRunner(clock, largest, seconds), max_queued_units=100_000)
    draw, at = random.Random(0), 0.0
    rate = load * largest / seconds(largest)
    arrivals: list[tuple[float, FakeJob]] = []
    for n in range(SMALL):
        at += draw.expovariate(rate)
        arrivals.append((at, FakeJob(n, key=key)))
    if big_every is not None:
        arrivals += [(big_every * (n + 0.5), FakeJob(f"big {n}", 64, key="big")) for n in range(int(at / big_every))]
    arrivals.sort(key=lambda arrival: -arrival[0])
    latencies = []

    def submit_due() -> None:
        while arrivals and arrivals[-1][0] <= clock.now:
            due, job = arrivals.pop()

            def done(_: Handle[object], due: float = due, small: bool = job.units == 1) -> None:
                if small:
                    latencies.append(clock.now - due)

            scheduler.submit(job).add_done_callback(done)

    runner.on_scale = submit_due
    while arrivals or scheduler.stats().queued_units:
        submit_due()
        if not scheduler.step() and arrivals:
            clock.now = max(clock.now, arrivals[-1][0])
    assert len(latencies) == SMALL
    return latencies


def p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * len(values))]


@functools.cache
def alone_latencies(cost: str, load: float) -> list[float]:
    return small_latencies(*COSTS[cost], big_every=None, load=load)


each_key = pytest.mark.parametrize("key", ["big", "small"], ids=["shared batches", "other key"])
each_cost = pytest.mark.parametrize("cost", COSTS)
# Shares of the device's time: about 8 small ones a second and an image of 64 tiles every 20 s, and much more.
each_load = pytest.mark.parametrize(("load", "bulk"), [(0.33, 0.13), (0.3, 0.5)], ids=["design", "heavy"])


def ratio(cost: str, key: str, load: float, bulk: float) -> float:
    """p95 of small ones beside big ones, over that of the same stream alone."""
    largest, seconds = COSTS[cost]
    every = 64 * seconds(largest) / largest / bulk
    alone = p95(alone_latencies(cost, load))
    beside = p95(small_latencies(largest, seconds, big_every=every, load=load, key=key))
    print(f"\nsmall p95 {alone * 1e3:.0f} ms, beside big ones {beside * 1e3:.0f} ms: {beside / alone:.2f}x", end="")
    return beside / alone


@each_key
@each_cost
@each_load
def test_small_ones_hardly_wait_for_big_ones(cost: str, key: str, load: float, bulk: float) -> None:
    assert ratio(cost, key, load, bulk) <= 3


@each_key
@each_cost
def test_one_small_one_after_the_other(cost: str, key: str) -> None:
    """Beside one image of 64 tiles, against the time of a small one on an idle device."""
    largest, seconds = COSTS[cost]
    scheduler, _, clock = inline(FakeRunner(VirtualClock(), largest, seconds))
    big = scheduler.submit(FakeJob("big", 64, key="big"))
    latencies = []
    while not big.done():
        start = clock.now
        scheduler.submit(FakeJob(len(latencies), key=key)).result()
        latencies.append(clock.now - start)
    print(f"\n{len(latencies)} small ones, p95 {p95(latencies) / seconds(1):.2f}x", end="")
    assert p95(latencies) <= 3 * seconds(1)


@each_cost
def test_first_come_first_served_would_not_do(cost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation tells the difference."""

    def take(self: Backlog, key: Hashable, most: int) -> list[Row]:
        queue, rows = self._queues.get(key, OrderedDict()), list[Row]()
        while queue and len(rows) < most:
            request = next(iter(queue))
            rows.append((request, request.taken))
            request.taken += 1
            if request.taken == request.units:
                del queue[request]
        if not queue:
            self._queues.pop(key, None)
        self.units -= len(rows)
        return rows

    monkeypatch.setattr(Backlog, "take", take)
    assert ratio(cost, "big", 0.33, 0.13) > 5
