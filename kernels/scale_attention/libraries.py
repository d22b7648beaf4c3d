"""scale_attention by libraries: torch's, pinned to cuDNN, and flash-attn where it is installed.

Chosen by name only (`attention=` of the engine, `backend=` of the op). cuDNN builds a plan for each new shape, which
takes it tens of milliseconds on the host: run every shape once before timing it or capturing it in a graph.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from varsr_engine.kernels.triton_backend import capability

CUDNN = SDPBackend.CUDNN_ATTENTION
# Modules with a `flash_attn_func`, newest first: flash-attn 4 (CuTe DSL), 3 (Hopper) and 2.
FLASH_MODULES = ("flash_attn.cute", "flash_attn_interface", "flash_attn")
OLDEST = (8, 0)


def why_not_library(q: torch.Tensor) -> str | None:
    """What both libraries ask for: a CUDA device, a 16-bit dtype, at most 128 contiguous values a head."""
    if not q.is_cuda:
        return f"the tensors are on {q.device}, not on a CUDA device"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"the tensors are {q.dtype}; the library takes float16 and bfloat16"
    if q.shape[3] > 128 or q.shape[3] % 8 != 0:
        return f"a head dimension of {q.shape[3]} is not a multiple of 8 up to 128"
    if capability(q.device) < OLDEST:
        return "the device has compute capability {}.{}, the library needs 8.0".format(*capability(q.device))
    if q.numel() == 0:
        return "there is no query"
    return None


def why_not_cudnn(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
) -> str | None:
    reason = why_not_library(q)
    if reason is None and not torch.backends.cudnn.is_available():
        return "this torch has no cuDNN"
    return reason


def cudnn_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
) -> torch.Tensor:
    """Raises RuntimeError where cuDNN refuses, with torch's reason: torch would silently take another kernel."""
    with sdpa_kernel(CUDNN):
        attended = F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)
    return attended if out is None else out.copy_(attended)


@functools.cache
def _flash_function() -> Callable[..., torch.Tensor | tuple[torch.Tensor, ...]] | None:
    for name in FLASH_MODULES:
        with_parent = name.split(".")[0]
        if importlib.util.find_spec(with_parent) is None:
            continue
        try:
            return importlib.import_module(name).flash_attn_func
        except (ImportError, AttributeError):  # another version of the package, or one built for another torch
            continue
    return None


def why_not_flash(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
) -> str | None:
    reason = why_not_library(q)
    if reason is None and _flash_function() is None:
        return "flash-attn is not installed: pip install 'varsr-engine[flash]'"
    return reason


def flash_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
) -> torch.Tensor:
    function = _flash_function()
    assert function is not None
    result = function(*(t.transpose(1, 2) for t in (q, k, v)), softmax_scale=1.0, causal=False)
    attended = (result if isinstance(result, torch.Tensor) else result[0]).flatten(2)  # some versions add the LSE
    return attended if out is None else out.copy_(attended)
