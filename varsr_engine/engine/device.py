"""From the names that users type to a device and a compute dtype that can run here."""

from __future__ import annotations

import torch

from varsr_engine.checkpoint import DTYPES
from varsr_engine.errors import InvalidParamsError


def resolve_device(name: str) -> torch.device:
    """The torch device called auto, cpu, cuda, cuda:N or N."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(f"cuda:{name}" if name.isdecimal() else name)
    except RuntimeError:
        raise InvalidParamsError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise InvalidParamsError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InvalidParamsError(f"device {name!r} was asked for, but this torch sees no CUDA device; use cpu")
        if (device.index or 0) >= torch.cuda.device_count():
            raise InvalidParamsError(f"device {name!r} does not exist: there are {torch.cuda.device_count()}")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute dtype called auto, fp32, fp16 or bf16. 16-bit types run on CUDA only."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name != "fp32" and device.type == "cpu":
        raise InvalidParamsError(f"dtype {name} needs a CUDA device: on a CPU it is slower than fp32 and less exact")
    return DTYPES[name]
