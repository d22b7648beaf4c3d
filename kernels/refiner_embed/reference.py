"""The specification of refiner_embed, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from varsr_engine.kernels.panels import as_matrix
from varsr_engine.kernels.spec import Cost


def refiner_embed_reference(
    cond: torch.Tensor, time: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    y = F.silu(cond + time, inplace=not torch.is_grad_enabled()).to(weight.dtype)
    h = F.linear(x.to(weight.dtype), as_matrix(weight), bias).to(x.dtype)
    return y, h.repeat(2, 1)


def refiner_embed_cost(M: int, Z: int, W: int, element: int = 4) -> Cost:
    return Cost(flops=2 * M * Z * W, bytes=M * (4 * Z + W * (8 + 4 * element)) + element * W * Z)
