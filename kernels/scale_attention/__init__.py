"""Attention of one scale's queries over every key cached so far."""

from __future__ import annotations

import torch

from varsr_engine.dispatch import Op
from varsr_engine.kernels.scale_attention import cpu_kernel
from varsr_engine.kernels.scale_attention.reference import scale_attention_reference
from varsr_engine.kernels.spec import check_dtype, check_ndim, check_shape

_op = Op("scale_attention")
_op.register("torch", scale_attention_reference)
_op.register("cpu", cpu_kernel.scale_attention_cpu, cpu_kernel.why_not)


def scale_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """softmax(q k^T) v with softmax scale 1 and no mask: a scale sees itself and all earlier scales.

    q (B, H, L, D), k and v (B, H, S, D), views of the cache's valid part; result (B, L, H * D) in q's dtype,
    in `out` if given.
    The softmax accumulates in float32 at least. Source: VARSR section 3.1.
    """
    check_ndim("scale_attention", "q", q, "(B, H, L, D)", 4)
    check_ndim("scale_attention", "k", k, "(B, H, S, D)", 4)
    B, H, L, D = q.shape
    S = k.shape[2]
    for name, t in (("k", k), ("v", v)):
        check_shape("scale_attention", name, t, "(B, H, S, D)", (B, H, S, D))
        check_dtype("scale_attention", name, t, q.dtype, "q")
    if S == 0:
        raise ValueError("scale_attention: S must be positive: a query needs a key to attend to")
    if out is not None:
        check_shape("scale_attention", "out", out, "(B, L, H * D)", (B, L, H * D))
        check_dtype("scale_attention", "out", out, q.dtype, "q")
    result: torch.Tensor = _op(q, k, v, out, backend=backend)
    return result
