"""qkv_norm_rope_cache in Triton: one product, whose epilogue does the rest while a tile is in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from varsr_engine.kernels.panels import is_packed
from varsr_engine.kernels.qkv_norm_rope_cache.reference import NORM_FLOOR
from varsr_engine.kernels.quantized import Rows, Weight, values_of
from varsr_engine.kernels.triton_product import matrices, operands, product, product_tile

HEAD_DIMS = (16, 32, 64, 128, 256)


@triton.jit
def norm_rope(y, scale, cos, sin, NORM_FLOOR: tl.constexpr):
    """Heads y (M, HEADS, D) brought to length scale (HEADS,), their pairs turned by the angles of cos, sin (M, D/2)."""
    M: tl.constexpr = y.shape[0]
    HEADS: tl.constexpr = y.shape[1]
    D: tl.constexpr = y.shape[2]
    even, odd = tl.split(tl.reshape(y, (M, HEADS, D // 2, 2)))
    norm = tl.sqrt(tl.sum(even * even + odd * odd, axis=2))
    factor = (scale[None, :] / tl.maximum(norm, NORM_FLOOR))[:, :, None]
    cos, sin = cos[:, None, :], sin[:, None, :]
    even, odd = even * factor, odd * factor
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (M, HEADS, D))


@triton.jit(do_not_specialize=["M", "L", "first"])
def qkv_norm_rope_cache_fwd_kernel(
    x,  # (M, K)
    w,  # (3 H D, K)
    bias_ptr,  # (3 H D,)
    q_scale_ptr,  # (H,)
    cos_ptr,  # (L, D/2)
    sin_ptr,
    q_ptr,  # (M / L, H, L - first, D)
    k_ptr,  # (M / L, H, >= L, D): the cache from `position` on
    v_ptr,
    stride_qb,
    stride_qh,
    stride_ql,
    stride_kb,
    stride_kh,
    stride_kl,
    stride_vb,
    stride_vh,
    stride_vl,
    L,
    first,  # the first token of a sequence whose query is wanted
    M,
    N,
    K,
    H: tl.constexpr,
    D: tl.constexpr,
    NORM_FLOOR: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
    TMA: tl.constexpr,
    x_scale=None,  # (M, 1 or K / GROUP) float32 where x and w are e4m3
    w_scale=None,  # (N,) float32
    GROUP: tl.constexpr = 0,
):
    HEADS: tl.constexpr = BLOCK_N // D
    rows, tiles = tl.cdiv(M, BLOCK_M), tl.cdiv(H, HEADS)  # tiles of one part, the last of which may have fewer heads
    row = tl.program_id(0) % rows * BLOCK_M
    part, head = tl.program_id(0) // rows // tiles, tl.program_id(0) // rows % tiles * HEADS
    # A tile that reaches the end of a sequence has its last query, any other at most the query of its own last row.
    if part == 0 and tl.minimum(row % L + tl.minimum(BLOCK_M, M - row), L) <= first:
        return
    col = (part * H + head) * D
    acc = product(
        x, w, M, N, K, row, col, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, TMA, x_scale=x_scale, w_scale=w_scale, GROUP=GROUP
    )

    offs_m, offs_n, heads = row + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), head + tl.arange(0, HEADS)
    batch, token = offs_m // L, offs_m % L
    mask_m = offs_m < M
    acc += tl.load(bias_ptr + col + offs_n, mask=col + offs_n < N, other=0.0).to(tl.float32)[None, :]
    y = tl.reshape(acc, (BLOCK_M, HEADS, D))
    if part < 2:
        pairs = token[:, None] * (D // 2) + tl.arange(0, D // 2)[None, :]
        cos = tl.load(cos_ptr + pairs, mask=mask_m[:, None], other=0.0)
        sin = tl.load(sin_ptr + pairs, mask=mask_m[:, None], other=0.0)
        scale = tl.load(q_scale_ptr + heads, mask=(heads < H) & (part == 0), other=1.0)
        y = norm_rope(y, scale, cos, sin, NORM_FLOOR)
    if part == 0:
        target, stride_b, stride_h, stride_l = q_ptr, stride_qb, stride_qh, stride_ql
        token -= first
    elif part == 1:
        target, stride_b, stride_h, stride_l = k_ptr, stride_kb, stride_kh, stride_kl
    else:
        target, stride_b, stride_h, stride_l = v_ptr, stride_vb, stride_vh, stride_vl
    rows_of = target + (batch.to(tl.int64) * stride_b + token * stride_l)
    offs = (head + offs_n // D) * stride_h + offs_n % D
    mask = (mask_m & (token >= 0))[:, None] & (head + offs_n // D < H)[None, :]
    y = tl.reshape(y, (BLOCK_M, BLOCK_N)).to(q_ptr.dtype.element_ty)
    tl.store(rows_of[:, None] + offs[None, :], y, mask=mask)


def why_not(
    x: Rows,
    weight: Weight,
    bias: torch.Tensor,
    q_scale: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: int,
    num_queries: int,
    out: torch.Tensor | None = None,
) -> str | None:
    D = k_cache.shape[3]
    if is_packed(values_of(weight)):
        return "the weight is packed for a CPU"
    if D not in HEAD_DIMS:
        return f"D is {D}, not one of {', '.join(map(str, HEAD_DIMS))}"
    for name, target in (("k_cache", k_cache), ("v_cache", v_cache), ("out", out)):
        if target is not None and target.stride(3) != 1:
            return f"the heads of {name} are not contiguous"
    return None


def qkv_norm_rope_cache_triton(
    x: Rows,
    weight: Weight,
    bias: torch.Tensor,
    q_scale: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: int,
    num_queries: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    (B, L, C), device = values_of(x).shape, bias.device
    H, D = k_cache.shape[1], k_cache.shape[3]
    M, N = B * L, 3 * C
    q = torch.empty(B, H, num_queries, D, device=device, dtype=bias.dtype) if out is None else out
    if M == 0:
        return q
    k, v = k_cache.narrow(2, position, L), v_cache.narrow(2, position, L)
    rows, matrix = matrices(x, weight)
    bias, q_scale, cos, sin = (t.contiguous() for t in (bias, q_scale, cos, sin))
    tile = product_tile(M, N, C, device, values_of(x).element_size(), least_n=D, most_n=256)
    grid = (triton.cdiv(M, tile.m) * 3 * triton.cdiv(H, tile.n // D),)
    qkv_norm_rope_cache_fwd_kernel[grid](
        bias_ptr=bias,
        q_scale_ptr=q_scale,
        cos_ptr=cos,
        sin_ptr=sin,
        q_ptr=q,
        k_ptr=k,
        v_ptr=v,
        stride_qb=q.stride(0),
        stride_qh=q.stride(1),
        stride_ql=q.stride(2),
        stride_kb=k.stride(0),
        stride_kh=k.stride(1),
        stride_kl=k.stride(2),
        stride_vb=v.stride(0),
        stride_vh=v.stride(1),
        stride_vl=v.stride(2),
        L=L,
        first=L - num_queries,
        H=H,
        D=D,
        NORM_FLOOR=NORM_FLOOR,
        **operands(rows, matrix, tile),
    )
    return q
