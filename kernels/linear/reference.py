"""The specification of linear, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from varsr_engine.kernels.panels import as_matrix
from varsr_engine.kernels.spec import Cost


def linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    if out is None:
        return F.linear(x, as_matrix(weight), bias)
    return torch.addmm(bias, x, as_matrix(weight).t(), out=out)


def linear_cost(M: int, N: int, K: int, element: int = 4) -> Cost:
    return Cost(flops=2 * M * N * K, bytes=element * (M * (K + N) + N * K))
