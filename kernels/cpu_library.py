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
from typing import Any

import torch

import varsr_engine

FOLDER = Path(varsr_engine.__file__).parent
# A library for each set of instructions, by what torch calls it; its kernels are in step with torch's own.
LIBRARIES = {"AVX2": "_cpu_avx2.so", "AVX512": "_cpu_avx512.so"}

LANES = 8  # floats an AVX2 register holds: every width must be a multiple


def instructions() -> str:
    """What torch's own kernels use here: AVX2, AVX512, or a name without a library."""
    return torch.backends.cpu.get_cpu_capability()


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or the reason why there is none."""
    if instructions() not in LIBRARIES:
        return None, f"this processor has no AVX2 (torch calls it {instructions()})"
    path = FOLDER / LIBRARIES[instructions()]
    if not path.exists():
        return None, f"varsr_engine/{path.name} was not built (no C++ compiler, or not x86-64, at install time)"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"varsr_engine/{path.name} cannot be loaded: {error}"
    return library, ""


def call(function: str, *arguments: torch.Tensor | float | None) -> int:
    """Call `varsr_cpu_<function>`: tensors as pointers (None as NULL), integers as int64, floats as float.

    The arguments live until the call returns, so that a copy made for it is not freed under the kernel. The result
    means something only where the function returns an int64.
    """
    compiled = _functions.get(function) or _declare(function, arguments)
    result: int = compiled(*[a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments])
    return result


_functions: dict[str, Any] = {}  # by name, once they were called


def _declare(function: str, arguments: tuple[torch.Tensor | float | None, ...]) -> Any:
    """The compiled function, its argument types those of this first call."""
    loaded, reason = _load()
    assert loaded is not None, reason
    compiled = getattr(loaded, f"varsr_cpu_{function}")
    c_types = {int: ctypes.c_int64, float: ctypes.c_float}
    compiled.argtypes = [c_types.get(type(a), ctypes.c_void_p) for a in arguments]
    compiled.restype = ctypes.c_int64
    return _functions.setdefault(function, compiled)


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
    reason = why_not_on(*tensors)
    if reason is not None:
        return reason
    for tensor in tensors:
        if tensor.dtype is not torch.float32:
            return f"only float32 is compiled, a tensor is {tensor.dtype}"
    if width % LANES != 0:
        return f"a width of {width} is not a multiple of {LANES}"
    return None


def why_not_on(*tensors: torch.Tensor) -> str | None:
    """Why there is no library for these tensors' devices, or None."""
    loaded, reason = _load()
    if loaded is None:
        return reason
    for tensor in tensors:
        if not tensor.is_cpu:
            return f"a tensor is on {tensor.device}, not on the CPU"
    return None


def rows_contiguous(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself if its last dimension is contiguous, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
