"""refiner_block on the CPU: a sweep (csrc/cpu/fused.cpp) and two products."""

from __future__ import annotations

import torch

from varsr_engine.kernels import cpu_library as cpu
from varsr_engine.kernels.adaln.cpu_kernel import modulated_norm
from varsr_engine.kernels.linear.cpu_kernel import gated_product, product
from varsr_engine.kernels.refiner_block.reference import RefinerBlockWeights


def why_not(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    gate: torch.Tensor,
    weights: RefinerBlockWeights,
    eps: float = 1e-6,
    out: torch.Tensor | None = None,
) -> str | None:
    if not x.is_contiguous() or (out is not None and not out.is_contiguous()):
        return "x or out is not contiguous"
    return cpu.why_not(x, shift, scale, gate, *weights, *([] if out is None else [out]), width=x.shape[-1])


def refiner_block_cpu(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    gate: torch.Tensor,
    weights: RefinerBlockWeights,
    eps: float = 1e-6,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    w, out = weights, torch.empty_like(x) if out is None else out
    h = cpu.scratch("normalised", *x.shape)
    modulated_norm(x, w.norm_weight.contiguous(), w.norm_bias.contiguous(), scale, shift, 1, eps, h)
    hidden = product(h, w.in_weight, cpu.scratch("hidden", *x.shape), w.in_bias, "silu")
    return gated_product(x, hidden, w.out_weight, w.out_bias, gate, 1, out)
