"""What every Triton kernel shares: when it can run, and where. Imports nothing of Triton: most machines launch none.

A kernel's file `kernels/<op>/triton_kernel.py` holds the kernels, a launcher with the op's arguments, and `why_not`
with the same arguments. The op registers them with `lazily`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch

from varsr_engine.dispatch import tensors_in

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
OLDEST = (8, 0)  # the first with asynchronous copies and bfloat16
OLDEST_FP8 = (8, 9)  # the first that converts to e4m3 and multiplies it
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it when it decorates a kernel

# What a launcher assumes where there is no device to ask: in the interpreter, and when kernels are compiled offline.
_assumed_capability = (9, 0)


@contextlib.contextmanager
def assume_capability(major: int, minor: int) -> Any:
    """Within this context launchers choose as for this device, where the tensors are on none: for tests."""
    global _assumed_capability
    before, _assumed_capability = _assumed_capability, (major, minor)
    try:
        yield
    finally:
        _assumed_capability = before


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of the tensors' device: (9, 0) is Hopper."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return _assumed_capability
    return _capability(device.index)


def why_not_triton(*values: Any, fp8: bool = False) -> str | None:
    """Why no Triton kernel takes these tensors, or None: it asks for one CUDA device, of compute capability 8.0.

    fp8: some may be e4m3, which asks for 8.9.
    """
    first = next(tensors_in(values))  # on a CPU, where this runs at each call of an op, the rest is not looked at
    launched = first.is_cuda or first.is_meta  # meta tensors: a dry run, which records the launches
    if not (launched or (INTERPRETING and first.device.type == "cpu")):
        return f"the tensors are on {first.device}, not on a CUDA device"
    if not _installed():
        return "triton is not installed"
    tensors = list(tensors_in(values))
    if any(t.device != first.device for t in tensors):
        return f"the tensors are on several devices: {', '.join(sorted({str(t.device) for t in tensors}))}"
    major, minor = capability(first.device)
    for t in tensors:
        if fp8 and t.dtype == torch.float8_e4m3fn:
            if (major, minor) < OLDEST_FP8:
                return f"the device has compute capability {major}.{minor}, FP8 needs 8.9 (Ada, Hopper or newer)"
        elif t.is_floating_point() and t.dtype not in DTYPES:
            return f"a tensor is {t.dtype}; kernels are for float16, bfloat16 and float32"
    if (major, minor) < OLDEST:
        return f"the device has compute capability {major}.{minor}, kernels need 8.0"
    return None


def lazily(module: str, launcher: str, *, fp8: bool = False) -> tuple[Callable[..., Any], Callable[..., str | None]]:
    """(implementation, why_not) of `module`, imported at the first call with tensors that a Triton kernel can take.

    The implementation runs with its tensors' device as the current one. fp8: it takes quantized operands too.
    """

    def implementation(*args: Any, **kwargs: Any) -> Any:
        function = getattr(importlib.import_module(module), launcher)
        device = next(tensors_in((*args, *kwargs.values()))).device
        if device.type != "cuda" or not torch.cuda.is_available():
            return function(*args, **kwargs)
        with torch.cuda.device(device):
            return function(*args, **kwargs)

    def why_not(*args: Any, **kwargs: Any) -> str | None:
        reason = why_not_triton(*args, *kwargs.values(), fp8=fp8)
        if reason is None:
            reason = importlib.import_module(module).why_not(*args, **kwargs)
        return reason

    return implementation, why_not
