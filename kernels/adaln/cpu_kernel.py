"""adaln through csrc/cpu/fused.cpp: one sweep over the rows. Shapes and dtypes are checked by the caller."""

from __future__ import annotations

import torch

from varsr_engine.kernels import cpu_library as cpu


def why_not(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float = 1e-6, out: torch.Tensor | None = None
) -> str | None:
    if out is not None and not out.is_contiguous():
        return "out is not contiguous"
    return cpu.why_not(x, scale, shift, *([] if out is None else [out]), width=x.shape[-1])


def adaln_cpu(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float = 1e-6, out: torch.Tensor | None = None
) -> torch.Tensor:
    B, L, C = x.shape
    out = torch.empty(B, L, C) if out is None else out
    modulated_norm(x.contiguous().view(B * L, C), None, None, scale, shift, max(L, 1), eps, out)
    return out


def modulated_norm(
    x: torch.Tensor,
    norm_weight: torch.Tensor | None,
    norm_bias: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    rows_per: int,
    eps: float,
    out: torch.Tensor,
) -> None:
    """out[r] = (layer_norm(x[r]) * w + b) * (1 + scale[r // rows_per]) + shift[r // rows_per], x (R, W) contiguous."""
    R, W = x.shape
    scale, shift = cpu.rows_contiguous(scale), cpu.rows_contiguous(shift)
    strides = (scale.stride(0), shift.stride(0))
    cpu.call("modulated_norm", x, norm_weight, norm_bias, scale, shift, *strides, rows_per, out, R, W, eps)
