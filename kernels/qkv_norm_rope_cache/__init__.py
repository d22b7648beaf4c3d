"""Queries, keys and values of one scale: projection, L2 normalisation, scale-aligned RoPE, write into the cache."""

from __future__ import annotations

import torch

from varsr_engine.dispatch import Op
from varsr_engine.kernels import cuda_backend
from varsr_engine.kernels.panels import check_weight
from varsr_engine.kernels.qkv_norm_rope_cache import cpu_kernel
from varsr_engine.kernels.qkv_norm_rope_cache.reference import qkv_norm_rope_cache_reference
from varsr_engine.kernels.quantized import Rows, Weight, check_operands, unquantized, values_of
from varsr_engine.kernels.spec import check_dtype, check_ndim, check_shape
from varsr_engine.kernels.triton_backend import lazily

_op = Op("qkv_norm_rope_cache")
_op.register("torch", qkv_norm_rope_cache_reference)
_op.register("cpu", cpu_kernel.qkv_norm_rope_cache_cpu, unquantized(cpu_kernel.why_not))
_op.register(
    "triton",
    *lazily("varsr_engine.kernels.qkv_norm_rope_cache.triton_kernel", "qkv_norm_rope_cache_triton", fp8=True),
)
_op.register(
    "cuda",
    *cuda_backend.lazily("varsr_engine.kernels.qkv_norm_rope_cache.cuda_kernel", "qkv_norm_rope_cache_cuda"),
    automatic=cuda_backend.MEASURED,
)


def qkv_norm_rope_cache(
    x: Rows,
    weight: Weight,
    bias: torch.Tensor,
    q_scale: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: int,
    *,
    num_queries: int | None = None,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """(q, k, v) = x W^T + b; q = RoPE(q / |q| * q_scale); k = RoPE(k / |k|); cache[position:position+L] = k, v.

    x (B, L, C), weight (3C, C) or its panels, bias (3C,), q_scale (H,) float32, cos and sin (L, D/2) float32,
    k_cache and v_cache (B, H, S, D), written in place. Returns q (B, H, num_queries, D) in x's dtype,
    in `out` if given: of the last num_queries tokens (default all), where the others are only attended to.
    x and weight may both be quantized: the rest is then in bias's dtype.
    Norms and rotations are taken in float32. Source: VARSR section 3.2 (scale-aligned RoPE).
    """
    op = "qkv_norm_rope_cache"
    rows, matrix = values_of(x), values_of(weight)
    check_ndim(op, "x", rows, "(B, L, C)", 3)
    check_ndim(op, "k_cache", k_cache, "(B, H, S, D)", 4)
    B, L, C = rows.shape
    _, H, S, D = k_cache.shape
    check_shape(op, "k_cache", k_cache, "(B, H, S, D)", (B, C // D, S, D))
    if H * D != C:
        raise ValueError(f"{op}: k_cache must be (B, H, S, D) with H * D = C = {C}, got {tuple(k_cache.shape)}")
    check_shape(op, "v_cache", v_cache, "(B, H, S, D)", (B, H, S, D))
    check_weight(op, "weight", matrix, "(3C, C)", (3 * C, C))
    check_shape(op, "bias", bias, "(3C,)", (3 * C,))
    check_shape(op, "q_scale", q_scale, "(H,)", (H,))
    check_shape(op, "cos", cos, "(L, D/2)", (L, D // 2))
    check_shape(op, "sin", sin, "(L, D/2)", (L, D // 2))
    check_dtype(op, "weight", matrix, rows.dtype, "x")
    dtype, like = (bias.dtype, "bias") if check_operands(op, x, weight) else (rows.dtype, "x")
    for name, t in (("bias", bias), ("k_cache", k_cache), ("v_cache", v_cache)):
        check_dtype(op, name, t, dtype, like)
    if not 0 <= position <= S - L:
        raise ValueError(f"{op}: position must be in [0, S - L] = [0, {S - L}], got {position}")
    num_queries = L if num_queries is None else num_queries
    if not 0 <= num_queries <= L:
        raise ValueError(f"{op}: num_queries must be in [0, L] = [0, {L}], got {num_queries}")
    if out is not None:
        check_shape(op, "out", out, "(B, H, num_queries, D)", (B, H, num_queries, D))
        check_dtype(op, "out", out, dtype, like)
    tensors = (x, weight, bias, q_scale, cos, sin, k_cache, v_cache)
    q: torch.Tensor = _op(*tensors, position, num_queries, out, backend=backend)
    return q
