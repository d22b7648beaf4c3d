"""groupnorm_silu on the CPU: two sweeps over a channels-last map (csrc/cpu/groupnorm_silu.cpp)."""

from __future__ import annotations

import torch

from varsr_engine.kernels import cpu_library as cpu


def why_not(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float = 1e-6,
    silu: bool = True,
    out: torch.Tensor | None = None,
) -> str | None:
    if out is not None and not out.is_contiguous(memory_format=torch.channels_last):
        return "out is not channels-last"
    if not x.is_contiguous(memory_format=torch.channels_last):
        return "x is not channels-last"
    return cpu.why_not(x, weight, bias, width=x.shape[1])


def groupnorm_silu_cpu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float = 1e-6,
    silu: bool = True,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    B, C, H, W = x.shape
    out = torch.empty(B, C, H, W, memory_format=torch.channels_last) if out is None else out
    parameters = (weight.contiguous(), bias.contiguous())
    cpu.call("groupnorm_silu", x, *parameters, out, B, H * W, C, groups, eps, int(silu))
    return out
