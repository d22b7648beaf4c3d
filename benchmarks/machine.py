"""What a measurement ran on: processor, versions, commit, and the ceiling of matrix products measured beside it."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent


def processor() -> str:
    """The CPU's name, or the GPU's where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str:
    """The checkout's commit, with `+` where files differ from it; unknown where there is no git."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    try:
        name = git("rev-parse", "--short=12", "HEAD")
        return (name or "unknown") + ("+" if name and git("status", "--porcelain", "-uno") else "")
    except OSError:
        return "unknown"


def gemm_ceiling(device: torch.device, dtype: torch.dtype, side: int = 4096, repeats: int = 5) -> float:
    """FLOP/s of torch's own side^3 matrix product, the best of several runs.

    A ceiling where torch uses the processor's widest registers; on AMD with AVX-512 it does not, the engine is faster.
    """
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out, times = torch.empty_like(a), []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times[1:])


def identity(device: torch.device) -> dict[str, Any]:
    """Processor, instructions and threads: what `results_folder` is named for."""
    return {
        "processor": processor(),
        "instructions": "CUDA" if device.type == "cuda" else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def describe(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    return {
        **identity(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "load_before": os.getloadavg()[0],
        "dtype": str(dtype).removeprefix("torch."),
        "gemm_ceiling_gflops": round(gemm_ceiling(device, dtype) / 1e9, 1),
    }


def results_folder(machine: dict[str, Any]) -> Path:
    """benchmarks/results/<machine>, of what `describe` says of it: processor, instructions and threads."""
    threads = f"{machine['threads']} threads" if machine["instructions"] != "CUDA" else ""
    name = f"{machine['processor']} {machine['instructions']} {threads}".lower()
    return ROOT / "benchmarks" / "results" / re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def median_and_range(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
