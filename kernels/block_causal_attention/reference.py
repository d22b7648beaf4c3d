"""The specification of block_causal_attention, in plain torch: one dense call a step, never an S x S mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from varsr_engine.kernels.spec import Cost


def block_causal_attention_reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: tuple[int, ...]
) -> torch.Tensor:
    outputs, end = [], 0
    for length in lengths:
        start, end = end, end + length
        visible_k, visible_v = k[:, :, :end], v[:, :, :end]
        outputs.append(F.scaled_dot_product_attention(q[:, :, start:end], visible_k, visible_v, scale=1.0))
    return torch.cat(outputs, dim=2).transpose(1, 2).flatten(2)


def block_causal_attention_cost(B: int, H: int, lengths: tuple[int, ...], D: int, element: int = 4) -> Cost:
    pairs = sum(length * sum(lengths[: i + 1]) for i, length in enumerate(lengths))
    return Cost(flops=4 * B * H * pairs * D, bytes=element * B * H * D * 4 * sum(lengths))
