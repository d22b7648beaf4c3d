"""refiner_embed on the CPU: a sweep, and a product of which both branches get a copy."""

from __future__ import annotations

import torch

from varsr_engine.kernels import cpu_library as cpu
from varsr_engine.kernels.linear.cpu_kernel import activate, product


def why_not(
    cond: torch.Tensor, time: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> str | None:
    return cpu.why_not(cond, time, x, weight, bias, width=cond.shape[-1])


def refiner_embed_cpu(
    cond: torch.Tensor, time: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    y, h = torch.empty(cond.shape), torch.empty(cond.shape)
    activate(cond.contiguous(), time, "silu", y)
    first, second = h.chunk(2)
    second.copy_(product(x, weight, first, bias))
    return y, h
