"""Attention over the whole multi-scale sequence: every token sees its own step and the earlier ones."""

from __future__ import annotations

import torch

from varsr_engine.dispatch import Op
from varsr_engine.kernels.block_causal_attention.reference import block_causal_attention_reference
from varsr_engine.kernels.spec import check_dtype, check_ndim, check_shape
from varsr_engine.kernels.triton_backend import lazily

_op = Op("block_causal_attention")
_op.register("torch", block_causal_attention_reference)
_op.register(
    "triton",
    *lazily("varsr_engine.kernels.block_causal_attention.triton_kernel", "block_causal_attention_triton"),
    differentiable=True,
)


def block_causal_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: tuple[int, ...],
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """softmax(q k^T + mask) v, where the mask hides later steps; softmax scale 1; differentiable.

    q, k, v (B, H, S, D); lengths: tokens of each step, summing to S; result (B, S, H * D).
    Source: VARSR section 3.1, the block-causal mask of teacher forcing.
    """
    check_ndim("block_causal_attention", "q", q, "(B, H, S, D)", 4)
    B, H, S, D = q.shape
    for name, t in (("k", k), ("v", v)):
        check_shape("block_causal_attention", name, t, "(B, H, S, D)", (B, H, S, D))
        check_dtype("block_causal_attention", name, t, q.dtype, "q")
    if sum(lengths) != S or any(n < 1 for n in lengths):
        raise ValueError(f"block_causal_attention: lengths must be positive and sum to S = {S}, got {lengths}")
    result: torch.Tensor = _op(q, k, v, tuple(lengths), backend=backend)
    return result
