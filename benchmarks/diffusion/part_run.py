"""A part from end to end, in the process that runs it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import diffusers
import torch

from benchmarks.diffusion.bench import Bench
from benchmarks.diffusion.gpu_state import GpuState
from benchmarks.diffusion.groups import QUALITY, groups_of
from benchmarks.diffusion.quality import measure
from benchmarks.diffusion.results import Results
from benchmarks.diffusion.settings import Settings
from benchmarks.gpu_suite.work import Clock
from benchmarks.machine import describe, processor


def machine_facts(settings: Settings) -> dict[str, Any]:
    """Names, versions, clocks and switches. A smoke run does not measure the processor's product."""
    device = settings.torch_device
    if settings.smoke:
        facts = {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    else:
        facts = describe(device, settings.torch_dtype)
    facts |= {
        "diffusers": diffusers.__version__,
        "triton": triton_version(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "matmul_precision": torch.get_float32_matmul_precision(),
    }
    return facts | GpuState(device).facts()


def triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


def run_part(part: str, settings: Settings, results: Results, seconds: float, argv: str) -> None:
    """Runs the part's groups within the time. Its status stays `running` until it ends, so that a killed one shows."""
    clock, begun = Clock(seconds), time.monotonic()
    torch.backends.cudnn.benchmark = True  # for peers; the engine sets its own
    results.machine(machine_facts(settings))
    record = results.part(part)
    record |= {"status": "running", "argv": argv, "settings": json.loads(settings.to_json()), "limit_s": seconds}
    record.pop("left_out", None)
    if part == QUALITY:
        assert settings.pairs is not None
        record |= {"quality": measure(settings, Path(settings.pairs)), "status": "ok"}
    else:
        Bench(settings, results, part, clock).run(groups_of(part, settings), begun)
    results.write()
