"""mlp on the CPU: a product that ends with bias and GELU (csrc/cpu/finish.h)."""

from __future__ import annotations

import torch

from varsr_engine.kernels import cpu_library as cpu
from varsr_engine.kernels.linear.cpu_kernel import product


def why_not(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None = None) -> str | None:
    return cpu.why_not(x, weight, bias, *([] if out is None else [out]), width=bias.shape[0])


def mlp_cpu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    B, L, _ = x.shape
    out = torch.empty(B, L, bias.shape[0]) if out is None else out
    product(x.flatten(0, 1), weight, out.flatten(0, 1), bias, "gelu")
    return out
