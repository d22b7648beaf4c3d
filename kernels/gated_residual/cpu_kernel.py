"""gated_residual on the CPU: a product that ends with bias, gate and addition (csrc/cpu/finish.h)."""

from __future__ import annotations

import torch

from varsr_engine.kernels import cpu_library as cpu
from varsr_engine.kernels.linear.cpu_kernel import gated_product


def why_not(
    residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    gate: torch.Tensor,
    out: torch.Tensor | None = None,
) -> str | None:
    if not residual.is_contiguous() or (out is not None and not out.is_contiguous()):
        return "residual or out is not contiguous"
    return cpu.why_not(residual, x, weight, bias, gate, *([] if out is None else [out]), width=residual.shape[-1])


def gated_residual_cpu(
    residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    gate: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    out = torch.empty_like(residual) if out is None else out
    rows, rows_per = x.flatten(0, 1), max(residual.shape[1], 1)
    gated_product(residual.flatten(0, 1), rows, weight, bias, gate, rows_per, out.flatten(0, 1))
    return out
