"""The specification of gated_residual, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from varsr_engine.kernels.quantized import Rows, Weight, plain_operands
from varsr_engine.kernels.spec import Cost


def gated_residual_reference(
    residual: torch.Tensor,
    x: Rows,
    weight: Weight,
    bias: torch.Tensor,
    gate: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    update = F.linear(*plain_operands(x, weight, bias)).to(residual.dtype)
    if out is None:
        return torch.addcmul(residual, update, gate[:, None])
    return torch.addcmul(residual, update, gate[:, None], out=out)


def gated_residual_cost(B: int, L: int, K: int, C: int, element: int = 4) -> Cost:
    return Cost(flops=2 * B * L * K * C, bytes=element * (B * L * K + C * K) + 8 * B * L * C)
