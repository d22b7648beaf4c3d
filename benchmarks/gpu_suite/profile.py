"""The kernels of one image, as the profiler sees a graph's replay: where the time goes, by kernel."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.gpu_suite.engine_times import Held, wait
from benchmarks.gpu_suite.model import random_input
from benchmarks.gpu_suite.settings import Settings
from benchmarks.gpu_suite.work import Clock, Item, NotRun, Result

MOST_KERNELS = 60


def items(settings: Settings, clock: Clock) -> list[Item]:
    held = Held(settings)
    batches = (settings.engine_batches[0], settings.engine_batches[-1])
    return [Item(f"b{b} {settings.compute_dtype}", partial(profile, held, settings, b), "profile") for b in batches]


def profile(held: Held, settings: Settings, batch: int) -> Result:
    if settings.device != "cuda":
        raise NotRun("there is no GPU to profile")
    engine, device = held.get(settings.compute_dtype), settings.torch_device
    lr = random_input(settings.config, batch, device)
    engine.generate(lr, seed=1)
    wait(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        engine.generate(lr, seed=1)
        wait(device)
    rows = [row for row in map(kernel_row, recorded.key_averages()) if row["us"] > 0]
    rows.sort(key=lambda row: -row["us"])
    return {
        "batch": batch,
        "launches": sum(row["calls"] for row in rows),
        "busy_us": round(sum(row["us"] for row in rows), 1),
        "kernels": rows[:MOST_KERNELS],
    }


def kernel_row(average: Any) -> dict[str, Any]:
    total = getattr(average, "self_device_time_total", None)  # in microseconds; older torch calls it by CUDA's name
    total = getattr(average, "self_cuda_time_total", 0.0) if total is None else total
    return {"kernel": average.key[:160], "calls": average.count, "us": round(float(total or 0.0), 1)}
