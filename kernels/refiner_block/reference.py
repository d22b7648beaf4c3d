"""The specification of refiner_block, in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from varsr_engine.kernels.panels import as_matrix
from varsr_engine.kernels.spec import Cost


class RefinerBlockWeights(NamedTuple):
    """Parameters of one residual block; W is the refiner's width."""

    norm_weight: torch.Tensor  # (W,)
    norm_bias: torch.Tensor  # (W,)
    in_weight: torch.Tensor  # (W, W) or its panels
    in_bias: torch.Tensor  # (W,)
    out_weight: torch.Tensor  # (W, W) or its panels
    out_bias: torch.Tensor  # (W,)


def refiner_block_reference(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    gate: torch.Tensor,
    weights: RefinerBlockWeights,
    eps: float = 1e-6,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    w = weights
    shift, scale, gate = (t.to(x.dtype) for t in (shift, scale, gate))
    normalised = F.layer_norm(x, x.shape[-1:], w.norm_weight.to(x.dtype), w.norm_bias.to(x.dtype), eps)
    h = torch.addcmul(normalised + shift, normalised, scale).to(w.in_weight.dtype)
    h = F.silu(F.linear(h, as_matrix(w.in_weight), w.in_bias), inplace=not torch.is_grad_enabled())
    update = F.linear(h, as_matrix(w.out_weight), w.out_bias).to(x.dtype)
    if out is None:
        return torch.addcmul(x, update, gate)
    return torch.addcmul(x, update, gate, out=out)


def refiner_block_cost(R: int, W: int, element: int = 4) -> Cost:
    return Cost(flops=4 * R * W * W, bytes=R * W * (8 + 3 * element) + 2 * element * W * W)
