"""The specification of scale_attention, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from varsr_engine.kernels.spec import Cost


def scale_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
) -> torch.Tensor:
    """`bound` changes nothing but how a kernel gets there."""
    attended = F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2)
    return attended if out is None else out.copy_(attended)


def scale_attention_cost(B: int, H: int, L: int, S: int, D: int, element: int = 4) -> Cost:
    return Cost(flops=4 * B * H * L * S * D, bytes=element * B * H * D * (2 * L + 2 * S))
