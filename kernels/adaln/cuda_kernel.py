"""adaln in CUDA C++ (csrc/cuda/adaln.cu): a block holds a row in registers, reads it once and writes it once."""

from __future__ import annotations

import torch

from varsr_engine.kernels.cuda_backend import VECTOR_BYTES, aligned, dtype_code, launch, rows_aligned, why_not_aligned
from varsr_engine.kernels.quantized import Rows

MOST_VECTORS = 1024  # of a row: 256 threads with four each


def why_not(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float = 1e-6, out: Rows | None = None
) -> str | None:
    target = x if out is None else out
    if not isinstance(target, torch.Tensor):
        return "it writes no quantized rows"
    if x.dtype not in (torch.float32, target.dtype):
        return f"x is {x.dtype} and out is {target.dtype}: 16-bit rows keep their dtype"
    C, vector = x.shape[-1], VECTOR_BYTES // min(x.element_size(), target.element_size())
    if C % vector != 0:
        return f"C is {C}, not a multiple of {vector}"
    if MOST_VECTORS * vector < C:
        return f"C is {C}, more than {MOST_VECTORS * vector}"
    if out is not None and not target.is_contiguous():
        return "out is not contiguous"
    return None if out is None else why_not_aligned(out=target)


def adaln_cuda(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float = 1e-6, out: torch.Tensor | None = None
) -> torch.Tensor:
    B, L, C = x.shape
    x, scale, shift = aligned(x), rows_aligned(scale), rows_aligned(shift)
    out = torch.empty_like(x) if out is None else out
    if out.numel() > 0:
        strides = scale.stride(0), shift.stride(0)
        dtypes = dtype_code(x.dtype), dtype_code(out.dtype)
        launch("adaln", x.device, x, scale, shift, out, B * L, L, C, *strides, eps, *dtypes)
    return out
