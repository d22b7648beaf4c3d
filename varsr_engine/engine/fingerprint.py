"""What an engine's pixels depend on beside the request, as one short text: equal texts, equal arithmetic.

Numerics, kind of device and dtype, such as batch_invariant-cpu-fp32, and a digest of these and of the weights, the
engine's version, its kernels, the libraries that multiply, the device's model and, on a CPU, its threads. Results of
one request and seed with equal fingerprints have the same pixels, bit for bit, if their numerics are batch_invariant;
in fast numerics they may still differ with what shared their batches. Different fingerprints promise nothing.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

import torch

import varsr_engine
import varsr_engine.kernels
from varsr_engine.checkpoint import Checkpoint
from varsr_engine.engine.nonfinite import name_of
from varsr_engine.engine.params import EngineConfig
from varsr_engine.kernels.cpu_library import instructions

SAMPLES = 4  # places in a tensor that its digest reads
SAMPLE = 64  # elements at each
DIGITS = 12


def fingerprint(
    config: EngineConfig, device: torch.device, dtype: torch.dtype, backend: str | None, weights: str
) -> str:
    """numerics-device-dtype-digest. backend: the one that was asked for; weights: their `weights_digest`."""
    parts = {
        "numerics": config.numerics,
        "dtype": name_of(dtype),
        "backend": backend or "auto",
        "attention": config.attention,
        "quantization": [config.quantization, config.fp8_layers, config.fp8_steps],
        "graphs": device.type == "cuda" and config.cuda_graphs,
        "version": varsr_engine.__version__,
        "kernels": kernels_digest(device.type),
        "machine": machine(device),
        "weights": weights,
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"{config.numerics}-{device.type}-{name_of(dtype)}-{digest[:DIGITS]}"


def weights_digest(checkpoint: Checkpoint) -> str:
    """Of all names, shapes and dtypes, and of a sample of each tensor's bytes: no file of gigabytes is read for it.

    The sample is `SAMPLE` elements at `SAMPLES` places from the first to the last; a tensor of no more is read whole.
    Any training changes it; an edit of single numbers elsewhere does not.
    """
    digest, read = hashlib.sha256(), checkpoint.open()
    for name in sorted(checkpoint.shapes):
        digest.update(f"{name} {checkpoint.shapes[name]} {checkpoint.dtypes[name]}\n".encode())
        values = read(name).detach().flatten()
        count, places = values.numel(), SAMPLES - 1
        if count <= SAMPLES * SAMPLE:
            runs = [values]
        else:
            runs = [
                values[start : start + SAMPLE] for i in range(SAMPLES) for start in [(count - SAMPLE) * i // places]
            ]
        for run in runs:
            digest.update(run.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@functools.cache
def kernels_digest(kind: str) -> str:
    """Of the sources of all ops, and of the native libraries that a kind of device ("cpu", "cuda") may call."""
    sources, libraries = Path(varsr_engine.kernels.__file__).parent, Path(varsr_engine.__file__).parent
    digest = hashlib.sha256()
    for folder, pattern in ((sources, "**/*.py"), (libraries, "_cpu_*.so" if kind == "cpu" else "_C.*")):
        for file in sorted(folder.glob(pattern)):
            digest.update(str(file.relative_to(folder)).encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def machine(device: torch.device) -> dict[str, Any]:
    """The device's model, what it may use of itself, and the versions of the libraries that compute on it."""
    about: dict[str, Any] = {"torch": torch.__version__}
    if device.type != "cuda":
        threads = torch.get_num_threads()  # a sum may be shared among them
        return about | {"processor": processor(), "instructions": instructions(), "threads": threads}
    properties = torch.cuda.get_device_properties(device)
    about |= {"gpu": properties.name, "capability": [properties.major, properties.minor], "cuda": torch.version.cuda}
    return about | {"cudnn": torch.backends.cudnn.version(), "triton": version_of("triton")}


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def processor() -> str:
    """The processor's model, as the system calls it."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
