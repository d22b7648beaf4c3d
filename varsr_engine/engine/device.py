"""From the names that users type to a device and a compute dtype that can run here."""

from __future__ import annotations

import torch

from varsr_engine.checkpoint import DTYPES
from varsr_engine.dispatch import active_backend
from varsr_engine.errors import InvalidParamsError, KernelUnavailableError
from varsr_engine.kernels.triton_backend import why_not_triton


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


def check_fp8(device: torch.device) -> None:
    """Raise KernelUnavailableError where FP8 products can neither run nor were asked for in their emulated form."""
    backend = active_backend()
    if backend == "torch":
        return
    reason: str | None
    if backend in ("cuda", "cpu"):
        reason = f"backend {backend} has no FP8 kernels"
    elif device.type == "cpu" and backend != "triton":
        reason = "a CPU has no FP8 products"
    else:
        reason = why_not_triton(torch.empty(0, device=device, dtype=torch.float8_e4m3fn), fp8=True)
    if reason is not None:
        raise KernelUnavailableError(
            f"quantization fp8 cannot run here: {reason}; use quantization none, or backend torch, which emulates it "
            "slowly, to measure what it costs in quality"
        )


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute dtype called auto, fp32, fp16 or bf16. 16-bit types run on CUDA only."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name != "fp32" and device.type == "cpu":
        raise InvalidParamsError(f"dtype {name} needs a CUDA device: on a CPU it is slower than fp32 and less exact")
    return DTYPES[name]
