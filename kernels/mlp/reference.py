"""The specification of mlp, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from varsr_engine.kernels.panels import as_matrix
from varsr_engine.kernels.spec import Cost


def mlp_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    if out is None:
        return F.gelu(F.linear(x, as_matrix(weight), bias), approximate="tanh")
    torch.addmm(bias, x.flatten(0, 1), as_matrix(weight).t(), out=out.flatten(0, 1))
    return torch.ops.aten.gelu.out(out, approximate="tanh", out=out)


def mlp_cost(B: int, L: int, C: int, F_: int, element: int = 4) -> Cost:
    return Cost(flops=2 * B * L * C * F_, bytes=element * (B * L * (C + F_) + C * F_))
