"""`varsr bench`: how long the engine takes on this machine, by stage."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import varsr_engine
from varsr_engine.commands.terminal import human_bytes, print_json, stdout_console
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.params import EngineConfig
from varsr_engine.errors import InvalidParamsError

GEMM_SIDE = {"cpu": 1536, "cuda": 8192}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds that a call takes, until the device is idle again, and its result."""
    synchronize(device)
    start = time.perf_counter()
    result = function()
    synchronize(device)
    return time.perf_counter() - start, result


def gemm_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square product, the best of six."""
    n = GEMM_SIDE[device.type]
    a, b = (torch.ones(n, n, device=device, dtype=dtype) / n for _ in range(2))
    best = min(timed(lambda: torch.mm(a, b), device)[0] for _ in range(6))
    return 2 * n**3 / best


def peak_bytes(device: torch.device) -> int | None:
    """Most memory so far, of the GPU's allocator or of this process; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def measure(engine: Engine, batch: int, repeat: int) -> dict[str, Any]:
    """Seconds in all and by stage, over `repeat` runs after one warm-up."""
    side, device = engine.model_config.image_side, engine.device
    lr = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def run() -> dict[str, float]:
        """Seconds by stage. A GPU runs behind the host, so the clock waits for it: the engine's own does not."""
        seconds = {}
        last = time.perf_counter()

        def ended(stage: str) -> None:
            nonlocal last
            synchronize(device)
            now = time.perf_counter()
            seconds[stage], last = now - last, now

        engine.generate(lr, on_stage=ended)
        return seconds

    run()
    totals: list[float] = []
    stages: dict[str, list[float]] = {}
    for _ in range(repeat):
        total, by_stage = timed(run, device)
        totals.append(total)
        for stage, value in by_stage.items():
            stages.setdefault(stage, []).append(value)
    return {"total": spread(totals), "stages": {stage: spread(values) for stage, values in stages.items()}}


def run_bench(model: str | None, config: EngineConfig, repeat: int, as_json: bool) -> None:
    engine = Engine.from_pretrained(model, config=config)
    if not engine.model_config.has_prefix:
        raise InvalidParamsError("bench times upscaling; this model is the class-to-image prior")
    seconds = measure(engine, config.images_per_pass, repeat)
    report = {
        "model": engine.model_id,
        "device": device_name(engine.device),
        "dtype": str(engine.dtype).removeprefix("torch."),
        "batch_size": config.images_per_pass,
        "repeat": repeat,
        "image_side": engine.model_config.image_side,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "version": varsr_engine.__version__,
        "seconds": seconds,
        "images_per_second": config.images_per_pass / seconds["total"]["median"],
        "peak_bytes": peak_bytes(engine.device),  # before the large product below
    }
    report["gemm_flops"] = gemm_ceiling(engine.device, engine.dtype)
    print_report(report)
    if as_json:
        print_json(report)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def print_report(report: dict[str, Any]) -> None:
    from rich.table import Table

    title = "{model}, {device}, {dtype}, batch {batch_size}, {repeat} runs, ms".format(**report)
    table = Table("stage", title=title, title_justify="left")
    for column in ("median", "min", "max"):
        table.add_column(column, justify="right")
    for stage, values in {**report["seconds"]["stages"], "total": report["seconds"]["total"]}.items():
        table.add_row(stage, *(f"{1000 * values[column]:.2f}" for column in ("median", "min", "max")))
    console = stdout_console()
    console.print(table)
    console.print(f"{report['images_per_second']:.3f} images of {report['image_side']}x{report['image_side']} a second")
    if report["peak_bytes"] is not None:
        console.print(f"peak memory {human_bytes(report['peak_bytes'])}")
    console.print(f"a large {report['dtype']} product here: {report['gemm_flops'] / 1e9:.0f} GFLOP/s")
