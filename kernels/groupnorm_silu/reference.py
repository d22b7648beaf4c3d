"""The specification of groupnorm_silu, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from varsr_engine.kernels.spec import Cost


def groupnorm_silu_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float = 1e-6,
    silu: bool = True,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    y = F.group_norm(x, groups, weight, bias, eps)
    y = F.silu(y, inplace=not y.requires_grad) if silu else y
    return y if out is None else out.copy_(y)


def groupnorm_silu_cost(B: int, C: int, H: int, W: int, element: int = 4) -> Cost:
    return Cost(flops=0, bytes=2 * element * B * C * H * W)
