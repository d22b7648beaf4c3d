"""Attention of one scale's queries over every key cached so far."""

from __future__ import annotations

import torch

from varsr_engine.dispatch import Op
from varsr_engine.kernels import cuda_backend
from varsr_engine.kernels.scale_attention import cpu_kernel, libraries
from varsr_engine.kernels.scale_attention.reference import scale_attention_reference
from varsr_engine.kernels.spec import check_dtype, check_ndim, check_shape
from varsr_engine.kernels.triton_backend import lazily

# A fixed shift by the bound b keeps exp(s - b) in [exp(-2b), 1]. Scaled to [2^14 exp(-2b), 2^14], these weights are
# normal float16 numbers, at least 2^-14 and at most 65504, up to b = 14 log 2 = 9.7; the rounding of q and k asks for
# some slack.
LARGEST_STATIC_BOUND = 9.5

_op = Op("scale_attention")
_op.register("torch", scale_attention_reference)
_op.register("cpu", cpu_kernel.scale_attention_cpu, cpu_kernel.why_not)
_op.register("triton", *lazily("varsr_engine.kernels.scale_attention.triton_kernel", "scale_attention_triton"))
_op.register(
    "cuda",
    *cuda_backend.lazily("varsr_engine.kernels.scale_attention.cuda_kernel", "scale_attention_cuda"),
    automatic=cuda_backend.MEASURED,
)
_op.register("cudnn", libraries.cudnn_attention, libraries.why_not_cudnn, automatic=False)
_op.register("flash", libraries.flash_attention, libraries.why_not_flash, automatic=False)


def scale_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """softmax(q k^T) v with softmax scale 1 and no mask: a scale sees itself and all earlier scales.

    q (B, H, L, D), k and v (B, H, S, D), views of the cache's valid part; result (B, L, H * D) in q's dtype,
    in `out` if given.
    bound (H,) float32 promises |q k| <= bound of the head, none above LARGEST_STATIC_BOUND: kernels may then shift
    scores by it instead of by their maximum. `static_bound` makes one.
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
    if bound is not None:
        check_shape("scale_attention", "bound", bound, "(H,)", (H,))
    result: torch.Tensor = _op(q, k, v, out, bound, backend=backend)
    return result


def static_bound(bound: torch.Tensor) -> torch.Tensor | None:
    """`bound` where scale_attention may take it, else None. Reads the values: for loading, not for a call."""
    return bound if bool((bound <= LARGEST_STATIC_BOUND).all()) else None
