"""What the machine is, and the most that it gives in this run: matrix products, memory traffic, launches in a graph."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu_suite.settings import Settings, torch_dtype
from benchmarks.gpu_suite.timing import Runner, interleave, runner
from benchmarks.gpu_suite.work import Clock, Item, NotRun, Result
from benchmarks.machine import processor

FP8 = torch.float8_e4m3fn
SECONDS = 2.0  # of rounds, for each ceiling


def items(settings: Settings, clock: Clock) -> list[Item]:
    def ceiling(measure: Callable[[Settings], Result]) -> Callable[[], Result]:
        return lambda: measure(settings)

    names: dict[str, Callable[[Settings], Result]] = {
        "facts": facts,
        "copy": copy,
        "product fp16": lambda s: product(s, "fp16"),
        "product bf16": lambda s: product(s, "bf16"),
        "product fp8": product_fp8,
        "launch in a graph": launch,
    }
    return [Item(name, ceiling(measure), group="machine") for name, measure in names.items()]


def facts(settings: Settings) -> Result:
    """Names and versions; no settings of the card are read or written beyond what torch says of it."""
    about: dict[str, Any] = {
        "gpu": "dry run",
        "processor": processor() if settings.dry_run else "",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    try:
        import triton

        about["triton"] = triton.__version__
    except ImportError:
        about["triton"] = None
    if settings.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": l2_bytes(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return about


def l2_bytes() -> int:
    """Size of the second-level cache; that of an H100 where torch does not tell."""
    if not torch.cuda.is_available():
        return 1 << 20
    return int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)) or 50 * 2**20


def timed(settings: Settings, call: Callable[[], Any]) -> dict[str, Any]:
    device = settings.torch_device
    contestants: dict[str, Runner] = {"it": runner([call], device)}
    result: dict[str, Any] = interleave(contestants, settings.rounds, device, SECONDS)["it"]
    return result


def copy(settings: Settings) -> Result:
    """A large copy within the device, bytes read and bytes written counted."""
    count = 2**20 if settings.dry_run else 2**31
    source = torch.empty(count, dtype=torch.uint8, device=settings.torch_device)
    source.view(torch.int32).random_()
    target = torch.empty_like(source)
    time_of = timed(settings, lambda: target.copy_(source))
    return {"bytes_per_s": 2 * count / time_of["median"], "time": time_of}


def product(settings: Settings, dtype_name: str) -> Result:
    if settings.dry_run and dtype_name == "bf16":
        raise NotRun("a dry run takes one")
    side = 64 if settings.dry_run else 8192
    dtype = torch.float32 if settings.dry_run else torch_dtype(dtype_name)
    a, b = (torch.randn(side, side, device=settings.torch_device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    time_of = timed(settings, lambda: torch.mm(a, b, out=out))
    return {"flop_per_s": 2 * side**3 / time_of["median"], "time": time_of}


def product_fp8(settings: Settings) -> Result:
    """torch._scaled_mm with one scale a tensor: the fastest that the library has."""
    if settings.device != "cuda" or torch.cuda.get_device_capability() < (8, 9):
        raise NotRun("fp8 products ask for a GPU of compute capability 8.9")
    side = 8192
    a, b = (torch.randn(side, side, device="cuda").to(FP8) for _ in range(2))
    one = torch.ones((), device="cuda")

    def multiply() -> Any:
        return torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)

    time_of = timed(settings, multiply)
    return {"flop_per_s": 2 * side**3 / time_of["median"], "time": time_of}


def launch(settings: Settings) -> Result:
    """One of many dependent kernels in a graph that do next to nothing: what 2,200 of them cost an image at least."""
    if settings.device != "cuda":
        raise NotRun("a GPU's number")
    x = torch.zeros(64, device="cuda")
    contestants: dict[str, Runner] = {"it": runner([lambda: x.add_(1.0)] * 400, settings.torch_device)}
    return {"time": interleave(contestants, settings.rounds, settings.torch_device, SECONDS)["it"]}
