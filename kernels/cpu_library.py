"""The compiled CPU kernels (csrc/cpu/): loading, and the conditions that all of them share.

The library is plain C functions on raw pointers, built with the package where a C++ compiler is at hand. It has no
OpenMP of its own: torch's thread pool serves both, so torch must be imported first.
"""

from __future__ import annotations

import ctypes
import math
import threading
from functools import lru_cache
from pathlib import Path

import torch

import varsr_engine

LIBRARY = Path(varsr_engine.__file__).parent / "_cpu.so"

LANES = 8  # floats an AVX2 register holds: every width must be a multiple


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or the reason why there is none."""
    if not LIBRARY.exists():
        return None, "varsr_engine/_cpu.so was not built (no C++ compiler, or not an x86-64 machine, at install time)"
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return None, f"this processor has no AVX2 (torch calls it {torch.backends.cpu.get_cpu_capability()})"
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return None, f"varsr_engine/_cpu.so cannot be loaded: {error}"
    return library, ""


def call(function: str, *arguments: torch.Tensor | float | None) -> int:
    """Call `varsr_cpu_<function>`: tensors as pointers (None as NULL), integers as int64, floats as float.

    The arguments live until the call returns, so that a copy made for it is not freed under the kernel. The result
    means something only where the function returns an int64.
    """
    loaded, reason = _load()
    assert loaded is not None, reason
    compiled = getattr(loaded, f"varsr_cpu_{function}")
    compiled.restype = ctypes.c_int64
    result: int = compiled(*map(_as_c, arguments))
    return result


def _as_c(value: torch.Tensor | float | None) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float:
    if value is None or isinstance(value, torch.Tensor):
        return ctypes.c_void_p(None if value is None else value.data_ptr())
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_float(value)


def scratch(purpose: str, *shape: int) -> torch.Tensor:
    """A float32 buffer that lives from call to call, one a purpose and thread; the next call may overwrite it.

    Fresh memory of this size costs a page fault each 4 KB at its first use, as much as the sweep that fills it.
    """
    count = math.prod(shape)
    buffers: dict[str, torch.Tensor] = _scratch.__dict__
    if purpose not in buffers or buffers[purpose].numel() < count:
        with torch.inference_mode(False):  # a buffer made in inference mode could not be written outside of it
            buffers[purpose] = torch.empty(count)
    return buffers[purpose][:count].view(shape)


_scratch = threading.local()


def why_not(*tensors: torch.Tensor, width: int = LANES) -> str | None:
    """Why the CPU kernels cannot run on these tensors, or None. `width`: floats that are processed in one go."""
    loaded, reason = _load()
    if loaded is None:
        return reason
    for tensor in tensors:
        if not tensor.is_cpu:
            return f"a tensor is on {tensor.device}, not on the CPU"
        if tensor.dtype is not torch.float32:
            return f"only float32 is compiled, a tensor is {tensor.dtype}"
    if width % LANES != 0:
        return f"a width of {width} is not a multiple of {LANES}"
    return None


def why_not_wide(*tensors: torch.Tensor, width: int = LANES) -> str | None:
    """As `why_not`, for kernels that are bound by arithmetic: torch's own are wider where there is AVX-512."""
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return "this processor has AVX-512, for which torch's own kernel is compiled and this one is not"
    return why_not(*tensors, width=width)


def rows_contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself if its last dimension is contiguous, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
