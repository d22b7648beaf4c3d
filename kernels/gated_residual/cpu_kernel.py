"""gated_residual on the CPU: a product, then bias, gate and addition in one sweep (csrc/cpu/fused.cpp)."""

from __future__ import annotations

import torch

from varsr_engine.kernels import cpu_library as cpu
from varsr_engine.kernels.linear.cpu_kernel import product


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
    x = x.flatten(0, 1)
    update = product(x, weight, cpu.scratch("product", x.shape[0], residual.shape[-1]))
    gated_add(residual, update, bias, gate, max(residual.shape[1], 1), out)
    return out


def gated_add(
    residual: torch.Tensor,
    update: torch.Tensor,
    bias: torch.Tensor,
    gate: torch.Tensor,
    rows_per: int,
    out: torch.Tensor,
) -> None:
    """out[r] = residual[r] + gate[r // rows_per] * (update[r] + bias); update (R, C), all rows contiguous."""
    gate, (R, C) = cpu.rows_contiguous(gate), update.shape
    cpu.call("gated_add", residual, update, bias.contiguous(), gate, gate.stride(0), rows_per, out, R, C)
