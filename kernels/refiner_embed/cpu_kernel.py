"""refiner_embed on the CPU: the product on a packed weight, the rest in torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from varsr_engine.kernels import cpu_library as cpu
from varsr_engine.kernels.linear import cpu_kernel as linear


def why_not(
    cond: torch.Tensor, time: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> str | None:
    return linear.why_not(x, weight, bias) or cpu.why_not(cond, time)


def refiner_embed_cpu(
    cond: torch.Tensor, time: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return F.silu(cond + time, inplace=True), linear.linear_cpu(x, weight, bias).repeat(2, 1)
