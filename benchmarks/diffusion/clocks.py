"""The two clocks, the order of turns, and what they cost in memory and energy.

`model`: from pictures on the device to pictures on the device, by CUDA events. `host`: from 8 bits on the host to 8
bits on the host: copy, bicubic resize, the model, colour fix on the device, quantisation, copy back, by the wall clock.
Neither reads or writes an image file.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.diffusion.contestants import Contestant, synchronise
from benchmarks.diffusion.methods import Pictures, resized
from benchmarks.gpu_suite.timing import EventRunner, Runner, WallRunner
from benchmarks.gpu_suite.work import Clock
from varsr_engine.imaging.color import adain_color_fix

T = TypeVar("T")

CLOCKS = ("model", "host")
DRIFT = 0.05  # between the first rounds and the last, beyond which a run is flagged


def on_device(low: Tensor, device: torch.device) -> Pictures:
    """low (B, 3, h, w) uint8 on the host, and its bicubic resize, as float32 in [0, 1] on the device."""
    x = low.to(device, non_blocking=True).float() / 255
    return Pictures(x, resized(x))


def host_call(contestant: Contestant, low: Tensor, device: torch.device, seed: int) -> Tensor:
    """(B, 3, S, S) uint8 on the host; the copy back waits for the device."""
    pictures = on_device(low, device)
    out = adain_color_fix(contestant.call(pictures, seed), pictures.resized)
    return (out * 255).round().to(torch.uint8).cpu()


def random_pictures(batch: int, low_side: int, seed: int, pinned: bool) -> Tensor:
    """(B, 3, low_side, low_side) uint8 on the host; smooth, as pictures are, with some noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(low_side, low_side), mode="bicubic")
    noise = torch.randn(smooth.shape, generator=generator)
    low = ((smooth + 0.03 * noise).clamp(0, 1) * 255).round().to(torch.uint8)
    return low.pin_memory() if pinned else low


def runner_of(contestant: Contestant, clock: str, low: Tensor, device: torch.device, seed: int) -> Runner:
    """One call a turn."""
    if clock == "host":
        return warmed(WallRunner([lambda: host_call(contestant, low, device, seed)]))
    pictures = on_device(low, device)
    call = [lambda: contestant.call(pictures, seed)]
    return EventRunner(call) if device.type == "cuda" else WallRunner(call)


def warmed(runner: Runner) -> Runner:
    runner.turn()
    return runner


def interleave(
    runners: Mapping[str, Runner],
    rounds: Mapping[str, int],
    device: torch.device,
    clock: Clock,
    on_round: Callable[[dict[str, list[float]]], None] = lambda seconds: None,
) -> dict[str, list[float]]:
    """Seconds of every turn by contestant. Each round is one turn of each that has rounds left, its first place moving.

    Stops after a round where no time is left. on_round is given what there is so far.
    """
    names, seconds = list(runners), {name: list[float]() for name in runners}
    for done in range(max(rounds.values(), default=0)):
        first = done % len(names)
        for name in names[first:] + names[:first]:
            if done < rounds[name]:
                synchronise(device)
                elapsed = runners[name].turn()
                synchronise(device)
                seconds[name].append(elapsed() / runners[name].calls)
        on_round(seconds)
        if clock.left <= 0:
            break
    return seconds


def drift(seconds: Mapping[str, Sequence[float]]) -> float | None:
    """How much longer turns take in the last third of the rounds than in the first, of 1; None: too few rounds."""
    changes = []
    for values in seconds.values():
        third = len(values) // 3
        if third:
            changes.append(statistics.median(values[-third:]) / statistics.median(values[:third]) - 1)
    return statistics.median(changes) if changes else None


def with_peak_bytes(call: Callable[[], T], device: torch.device) -> tuple[T, int | None]:
    """A warm call's result, and the bytes that it took above what lay there; None on a CPU, where torch counts none."""
    if device.type != "cuda":
        return call(), None
    synchronise(device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = call()
    synchronise(device)
    return out, torch.cuda.max_memory_allocated() - before


def repeated(call: Callable[[], object], device: torch.device, seconds: float) -> int:
    """Calls until so much time is over; how many there were, the device idle after the last."""
    begin, count = time.monotonic(), 0
    while time.monotonic() - begin < seconds or not count:
        call()
        synchronise(device)
        count += 1
    return count
