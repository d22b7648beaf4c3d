"""What every CUDA C++ kernel shares: the built module, when it can run, and calls on raw pointers.

A kernel's file `kernels/<op>/cuda_kernel.py` holds a launcher with the op's arguments and `why_not` with the same; its
source is `csrc/cuda/<op>.cu`. The op registers both through `lazily`, with `automatic=MEASURED`: none has run on a GPU
yet, so that each runs only where it is asked for by name, until `docs/performance-log.md` has its times.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

from varsr_engine.dispatch import tensors_in

MEASURED = False
NOT_MEASURED = "not measured on a GPU yet: runs where it is asked for"

# As csrc/cuda/kernel.cuh numbers them.
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
VECTOR_BYTES = 16  # a load or a store
MOST_IN_GRID = 65535  # of a grid's y and z

_emulator: ModuleType | None = None  # tests compile the same sources for a CPU, and put them here


@contextlib.contextmanager
def emulating(module: ModuleType) -> Iterator[None]:
    """Within this context tensors on a CPU run in `module`, the sources compiled for it: for tests."""
    global _emulator
    before, _emulator = _emulator, module
    try:
        yield
    finally:
        _emulator = before


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    """varsr_engine._C, or why there is none."""
    try:
        return importlib.import_module("varsr_engine._C"), ""
    except ModuleNotFoundError:
        return None, "varsr_engine._C was not built (no nvcc at install time, or VARSR_BUILD_CUDA=0)"
    except ImportError as error:
        return None, f"varsr_engine._C cannot be loaded: {error}"


def about_build() -> str:
    """What `varsr info` prints: the architectures and the runtime that were built, or why there is nothing."""
    module, reason = _load()
    if module is None:
        return reason
    major, minor = divmod(module.runtime_version() // 10, 100)
    return f"{module.architectures}, CUDA {major}.{minor}; {NOT_MEASURED}"


@functools.cache
def _why_not_device(index: int | None) -> str | None:
    module, _ = _load()
    assert module is not None
    major, minor = torch.cuda.get_device_capability(index)
    built = module.architectures.split()
    # Code for sm_80 runs on every 8.x; that for sm_90a on 9.0 alone.
    if (major == 8 and "sm_80" in built) or ((major, minor) == (9, 0) and "sm_90a" in built):
        return None
    return f"the device has compute capability {major}.{minor}, built are {', '.join(built)}"


def why_not_cuda(*values: Any) -> str | None:
    """Why no CUDA kernel takes these tensors, or None: it asks for one CUDA device that the module was built for."""
    tensors = list(tensors_in(values))
    first = tensors[0]
    emulated = _emulator is not None and first.device.type == "cpu"
    if not emulated:
        module, reason = _load()
        if module is None:
            return reason
        if not first.is_cuda:
            return f"the tensors are on {first.device}, not on a CUDA device"
    if any(t.device != first.device for t in tensors):
        return f"the tensors are on several devices: {', '.join(sorted({str(t.device) for t in tensors}))}"
    for t in tensors:
        if t.is_floating_point() and t.dtype not in DTYPES:
            return f"a tensor is {t.dtype}; kernels are for float16, bfloat16 and float32"
    return None if emulated else _why_not_device(first.device.index)


def why_not_aligned(**tensors: torch.Tensor | None) -> str | None:
    """Why rows of these tensors, contiguous in the last dimension, cannot be read 16 bytes at a time, or None."""
    for name, t in tensors.items():
        if t is None or t.numel() == 0:
            continue
        if t.stride(-1) != 1 and t.shape[-1] != 1:
            return f"the last dimension of {name} is not contiguous"
        strides = [s for s, size in zip(t.stride()[:-1], t.shape[:-1], strict=True) if size > 1]
        places = [t.data_ptr(), *(s * t.element_size() for s in strides)]
        if any(place % VECTOR_BYTES for place in places):
            return f"rows of {name} do not start at multiples of {VECTOR_BYTES} bytes"
    return None


def aligned(t: torch.Tensor) -> torch.Tensor:
    """The tensor itself if it is contiguous from a multiple of 16 bytes on, else a copy that is."""
    if t.is_contiguous() and t.data_ptr() % VECTOR_BYTES == 0:
        return t
    return t.clone(memory_format=torch.contiguous_format)


def rows_aligned(t: torch.Tensor) -> torch.Tensor:
    """The tensor itself if all its rows start at multiples of 16 bytes, as in a slice of a wider table, else a copy."""
    return t if why_not_aligned(rows=t) is None else t.clone(memory_format=torch.contiguous_format)


def dtype_code(dtype: torch.dtype) -> int:
    return DTYPES[dtype]


def launch(function: str, device: torch.device, *arguments: Any) -> None:
    """Call `_C.<function>` on the current stream of `device`: numbers, tensors as pointers, None as a null pointer.

    Raises RuntimeError with the function's name and the cause where the launch fails. Copies made for the call may be
    freed behind it: their memory is reused in the order of the stream.
    """
    values = [a.data_ptr() if isinstance(a, torch.Tensor) else 0 if a is None else a for a in arguments]
    if device.type == "cpu":
        assert _emulator is not None
        getattr(_emulator, function)(0, *values, 0)
        return
    module, reason = _load()
    assert module is not None, reason
    index = torch.cuda.current_device() if device.index is None else device.index
    getattr(module, function)(index, *values, torch.cuda.current_stream(device).cuda_stream)


def lazily(module: str, launcher: str) -> tuple[Callable[..., Any], Callable[..., str | None]]:
    """(implementation, why_not) of `module`, imported at the first call with tensors that a CUDA kernel can take."""

    def implementation(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), launcher)(*args, **kwargs)

    def why_not(*args: Any, **kwargs: Any) -> str | None:
        reason = why_not_cuda(*args, *kwargs.values())
        if reason is None:
            reason = importlib.import_module(module).why_not(*args, **kwargs)
        return reason

    return implementation, why_not
