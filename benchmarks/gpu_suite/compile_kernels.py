"""Triton kernels compiled ahead, by many processes at once, into Triton's cache on disk: later parts find them there.

The engine runs on a fake GPU (tests/aot), which hands over every kernel that an image launches; each process compiles
its share. No process here touches the GPU, and nothing depends on it but time.
"""

from __future__ import annotations

import os
import subprocess
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_suite.settings import Settings, torch_dtype
from benchmarks.gpu_suite.work import Clock, Item, NotRun, Result
from varsr_engine.config import ModelConfig

SHARES = 14
LAYERS = 2  # the last differs from the others, which launch the same kernels
GOLDEN = (("tiny", 2), ("small", 1))  # cases that parity runs, and their batches


def items(settings: Settings, clock: Clock) -> list[Item]:
    shares = range(SHARES)
    return [Item(f"share {i}", partial(compile_share, settings, clock, i), on_device=False) for i in shares]


def programs(settings: Settings) -> list[tuple[ModelConfig, int, str]]:
    """(network, batch, dtype) of what later parts run, what matters most first."""
    from benchmarks.gpu_suite.parity import golden_folders
    from tests.golden_cases import GOLDEN_FOLDER, load_case

    found = [(settings.config, batch, settings.compute_dtype) for batch in settings.engine_batches]
    found += [(settings.config, b, d) for d in settings.check_dtypes for b in settings.check_batches]
    found += [(settings.config, batch, "fp8") for batch in settings.engine_batches]
    cases = [(load_case(GOLDEN_FOLDER, name).config, batch) for name, batch in GOLDEN]
    if any((Path(folder) / "full.json").exists() for folder in golden_folders()):
        cases.append((settings.config, 1))
    found += [(config, batch, dtype) for config, batch in cases for dtype in settings.parity_dtypes]
    return list(dict.fromkeys(found))


def capability() -> int:
    """Of the GPU, as 10 * major + minor; asked for without making a CUDA context. Hopper's where nothing answers."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
        major, minor = text.split(".")
        return 10 * int(major) + int(minor)
    except (OSError, subprocess.CalledProcessError, IndexError, ValueError):
        return 90


def compile_share(settings: Settings, clock: Clock, share: int) -> Result:
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise NotRun("kernels are interpreted here")
    from triton.runtime.jit import JITFunction

    from benchmarks.gpu_suite.calls import fake_pipeline
    from tests.aot.fake_gpu import fake_gpu
    from tests.aot.published import DEVICE, fake_request, run_image

    run, seen, errors = JITFunction.run, set[str](), dict[str, str]()

    def compile_one(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        key = f"{kernel.fn.__name__} {kwargs} {[getattr(a, 'dtype', type(a)) for a in args]}"
        if zlib.crc32(key.encode()) % SHARES != share or clock.left < 0:
            return
        seen.add(key)
        try:
            run(kernel, *args, grid=(1,), warmup=True, **kwargs)
        except Exception as error:
            errors[kernel.fn.__name__] = f"{type(error).__name__}: {error}"[:500]

    with fake_gpu(capability(), compile_one) as gpu:
        for config, batch, dtype in programs(settings):
            fp8 = dtype == "fp8"
            pipeline = fake_pipeline(replace(config, depth=LAYERS), torch_dtype("fp16" if fp8 else dtype), fp8)
            lr = torch.empty(batch, 3, config.image_side, config.image_side, device=DEVICE)
            for greedy in (True, False) if batch in settings.check_batches else (True,):
                with gpu.recording():
                    run_image(pipeline, lr, fake_request(batch, greedy=greedy))
    about: Result = {"kernels": len(seen), "late": clock.left < 0}
    return {**about, "status": "FAILED", "error": str(errors)} if errors else about
