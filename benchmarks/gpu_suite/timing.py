"""Times contestants in interleaved rounds: by CUDA graphs and events on a GPU, by the wall clock in a dry run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

ROUND_SECONDS = 250e-6  # of one contestant's turn, at least: what a graph's launch costs must not show
MOST_CALLS = 400  # of one graph

Call = Callable[[], Any]


class Runner(Protocol):
    """One contestant, ready to run a turn of `calls` calls."""

    how: str
    calls: int

    def turn(self) -> Callable[[], float]:
        """Run it; the result gives the seconds of the turn, once the device is idle."""
        ...


def event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


class EventRunner:
    """Calls issued one by one between two events: where a call cannot be captured, or takes long anyway."""

    how = "events"

    def __init__(self, calls: Sequence[Call], repeats: int = 1) -> None:
        self._sequence = [call for _ in range(repeats) for call in calls]
        self.calls = len(self._sequence)

    def turn(self) -> Callable[[], float]:
        begin, end = event(), event()
        begin.record()
        for call in self._sequence:
            call()
        end.record()
        return lambda: begin.elapsed_time(end) / 1e3


class GraphRunner:
    """Calls captured in one CUDA graph: no launch costs, as in the engine."""

    how = "graph"

    def __init__(self, calls: Sequence[Call], repeats: int) -> None:
        self.calls = repeats * len(calls)
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # torch.cuda.graph would empty the allocator's cache each time
            self._graph.capture_begin()
            try:
                for _ in range(repeats):
                    for call in calls:
                        call()
            finally:
                self._graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)

    def turn(self) -> Callable[[], float]:
        begin, end = event(), event()
        begin.record()
        self._graph.replay()
        end.record()
        return lambda: begin.elapsed_time(end) / 1e3

    def seconds(self) -> float:
        """Of one turn, after another that warms up."""
        self.turn()
        turn = self.turn()
        torch.cuda.synchronize()
        return turn()


class WallRunner:
    how = "wall clock"

    def __init__(self, calls: Sequence[Call]) -> None:
        self._sequence, self.calls = list(calls), len(calls)

    def turn(self) -> Callable[[], float]:
        start = time.perf_counter()
        for call in self._sequence:
            call()
        seconds = time.perf_counter() - start
        return lambda: seconds


def warmed_seconds(calls: Sequence[Call]) -> float:
    """Seconds of one pass over the calls, after a pass that compiles, plans and allocates what they need."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    begin, end = event(), event()
    begin.record()
    for call in calls:
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def runner(calls: Sequence[Call], device: torch.device, capture: bool = True) -> Runner:
    """The calls, one a set of inputs, ready to be timed."""
    if device.type != "cuda":
        for call in calls:
            call()
        return WallRunner(calls)
    side = torch.cuda.Stream()  # warm up beside the default stream, as a capture asks for
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        seconds = warmed_seconds(calls)
    torch.cuda.current_stream().wait_stream(side)
    repeats = repeats_for(seconds, len(calls))
    if capture:
        try:
            graph = GraphRunner(calls, repeats)
            longer = repeats_for(graph.seconds() / repeats, len(calls))  # a graph saves the launches that were timed
            return graph if longer < 2 * repeats else GraphRunner(calls, longer)
        except RuntimeError:  # something in it synchronises: timed all the same, and marked
            torch.cuda.synchronize()
    return EventRunner(calls, repeats)


def repeats_for(seconds: float, calls: int) -> int:
    """How often a pass over the calls, of that time, is repeated in a turn."""
    return max(1, min(MOST_CALLS // calls, round(ROUND_SECONDS / max(seconds, 1e-7))))


def interleave(runners: dict[str, Runner], rounds: int, device: torch.device, most_seconds: float) -> dict[str, Any]:
    """Seconds a call by contestant, in the rounds of `interleaved_rounds`: median, quartiles and their number."""
    seconds = interleaved_rounds(runners, rounds, device, most_seconds)
    return {name: {**spread(own), "how": runners[name].how} for name, own in seconds.items()}


def interleaved_rounds(
    runners: dict[str, Runner], rounds: int, device: torch.device, most_seconds: float
) -> dict[str, list[float]]:
    """Seconds a call by contestant, of every round, in which each has one turn.

    Rounds stop at most_seconds of work, but not before the fifth.
    """
    turns: dict[str, list[Callable[[], float]]] = {name: [] for name in runners}
    start = time.monotonic()
    for done in range(rounds):
        for name, contestant in runners.items():
            turns[name].append(contestant.turn())
        if done % 5 == 4:  # the host runs ahead of the device by a few rounds, not by all
            if device.type == "cuda":
                torch.cuda.synchronize()
            if time.monotonic() - start > most_seconds:
                break
    if device.type == "cuda":
        torch.cuda.synchronize()
    return {name: [turn() / runners[name].calls for turn in turns[name]] for name in runners}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles, and how many values there are."""
    ordered = sorted(values)
    quartiles = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else [ordered[0]] * 3
    return {"median": quartiles[1], "q1": quartiles[0], "q3": quartiles[2], "min": ordered[0], "n": len(ordered)}
