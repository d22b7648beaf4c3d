"""block_causal_attention in Triton, forward and backward: a tile of queries only meets the blocks of keys that it sees.

A token sees the keys before the end of its own step. Blocks before the end of the step of a tile's first row need no
mask, and those after that of its last row are never read. Programs with most to do start first.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from varsr_engine.kernels.scale_attention.triton_kernel import LOG2E, attend, head_rows, why_not_heads
from varsr_engine.kernels.triton_backend import capability


class Tile(NamedTuple):
    """Rows of queries and of keys: one is a program's tile, the other its loop's block. Warps, steps in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


@triton.jit
def block_causal_attention_fwd_kernel(
    q_ptr,  # (B, H, S, D)
    k_ptr,
    v_ptr,
    ends_ptr,  # (S,) int32: how many keys a token sees
    out_ptr,  # (B, S, H * D)
    lse_ptr,  # (B * H, S) float32: log of the sum of exp(scores)
    stride_qb,
    stride_qh,
    stride_ql,
    stride_kb,
    stride_kh,
    stride_kl,
    stride_vb,
    stride_vh,
    stride_vl,
    H,
    S,
    BLOCK_L: tl.constexpr,
    BLOCK_S: tl.constexpr,
    D: tl.constexpr,
):
    row = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_L
    head = tl.program_id(1)
    b, h = head // H, head % H
    offs_l = row + tl.arange(0, BLOCK_L)
    mask_l = offs_l < S
    q = head_rows(q_ptr, b, h, row, stride_qb, stride_qh, stride_ql, S, BLOCK_L, D, True)
    acc = tl.zeros((BLOCK_L, D), tl.float32)
    norm = tl.zeros((BLOCK_L,), tl.float32)
    top = tl.full((BLOCK_L,), float("-inf"), tl.float32)

    ends = tl.load(ends_ptr + offs_l, mask=mask_l, other=S)
    plain = tl.load(ends_ptr + row) // BLOCK_S * BLOCK_S
    last = tl.load(ends_ptr + tl.minimum(row + BLOCK_L, S) - 1)
    for col in range(0, plain, BLOCK_S):
        k = head_rows(k_ptr, b, h, col, stride_kb, stride_kh, stride_kl, S, BLOCK_S, D, False)
        v = head_rows(v_ptr, b, h, col, stride_vb, stride_vh, stride_vl, S, BLOCK_S, D, False)
        acc, norm, top = attend(q, k, v, acc, norm, top, None, False, False)
    for col in range(plain, last, BLOCK_S):  # a row has seen a key before a block hides all of its own
        k = head_rows(k_ptr, b, h, col, stride_kb, stride_kh, stride_kl, S, BLOCK_S, D, True)
        v = head_rows(v_ptr, b, h, col, stride_vb, stride_vh, stride_vl, S, BLOCK_S, D, True)
        visible = (col + tl.arange(0, BLOCK_S))[None, :] < ends[:, None]
        acc, norm, top = attend(q, k, v, acc, norm, top, visible, True, False)

    y = (acc / norm[:, None]).to(out_ptr.dtype.element_ty)
    offs = (b.to(tl.int64) * S + offs_l)[:, None] * (H * D) + h * D + tl.arange(0, D)[None, :]
    tl.store(out_ptr + offs, y, mask=mask_l[:, None])
    tl.store(lse_ptr + head.to(tl.int64) * S + offs_l, top + tl.log(norm), mask=mask_l)


@triton.jit
def dq_step(q, k, v, do, lse, delta, dq, visible, MASKED: tl.constexpr):
    """One block of keys: dq + dS k, with dS = P (dO v^T - delta)."""
    p = tl.exp2((tl.dot(q, k.T, input_precision="ieee") - lse[:, None]) * LOG2E)
    if MASKED:
        p = tl.where(visible, p, 0.0)
    ds = p * (tl.dot(do, v.T, input_precision="ieee") - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")


@triton.jit
def block_causal_attention_dq_kernel(
    q_ptr,  # (B, H, S, D)
    k_ptr,
    v_ptr,
    ends_ptr,  # (S,) int32
    out_ptr,  # (B, S, H * D)
    do_ptr,  # (B, S, H * D)
    lse_ptr,  # (B * H, S) float32
    delta_ptr,  # (B * H, S) float32, written: sum of out do over D
    dq_ptr,  # (B, H, S, D)
    stride_qb,
    stride_qh,
    stride_ql,
    stride_kb,
    stride_kh,
    stride_kl,
    stride_vb,
    stride_vh,
    stride_vl,
    H,
    S,
    BLOCK_L: tl.constexpr,
    BLOCK_S: tl.constexpr,
    D: tl.constexpr,
):
    row = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_L
    head = tl.program_id(1)
    b, h = head // H, head % H
    offs_l, offs_d = row + tl.arange(0, BLOCK_L), tl.arange(0, D)
    mask_l = offs_l < S
    q = head_rows(q_ptr, b, h, row, stride_qb, stride_qh, stride_ql, S, BLOCK_L, D, True)
    out = head_rows(out_ptr, b, h, row, S * H * D, D, H * D, S, BLOCK_L, D, True)
    do = head_rows(do_ptr, b, h, row, S * H * D, D, H * D, S, BLOCK_L, D, True)
    offs_r = head.to(tl.int64) * S + offs_l
    lse = tl.load(lse_ptr + offs_r, mask=mask_l, other=0.0)
    delta = tl.sum(out.to(tl.float32) * do.to(tl.float32), axis=1)
    tl.store(delta_ptr + offs_r, delta, mask=mask_l)
    dq = tl.zeros((BLOCK_L, D), tl.float32)

    ends = tl.load(ends_ptr + offs_l, mask=mask_l, other=S)
    plain = tl.load(ends_ptr + row) // BLOCK_S * BLOCK_S
    last = tl.load(ends_ptr + tl.minimum(row + BLOCK_L, S) - 1)
    for col in range(0, plain, BLOCK_S):
        k = head_rows(k_ptr, b, h, col, stride_kb, stride_kh, stride_kl, S, BLOCK_S, D, False)
        v = head_rows(v_ptr, b, h, col, stride_vb, stride_vh, stride_vl, S, BLOCK_S, D, False)
        dq = dq_step(q, k, v, do, lse, delta, dq, None, False)
    for col in range(plain, last, BLOCK_S):
        k = head_rows(k_ptr, b, h, col, stride_kb, stride_kh, stride_kl, S, BLOCK_S, D, True)
        v = head_rows(v_ptr, b, h, col, stride_vb, stride_vh, stride_vl, S, BLOCK_S, D, True)
        visible = (col + tl.arange(0, BLOCK_S))[None, :] < ends[:, None]
        dq = dq_step(q, k, v, do, lse, delta, dq, visible, True)
    offs = offs_r[:, None] * D + offs_d[None, :]
    tl.store(dq_ptr + offs, dq.to(dq_ptr.dtype.element_ty), mask=mask_l[:, None])


@triton.jit
def dkv_step(q, k, v, do, lse, delta, dk, dv, visible, MASKED: tl.constexpr):
    """One block of queries: (dk + dS^T q, dv + P^T dO). Both are computed transposed, as operands of these products."""
    p = tl.exp2((tl.dot(k, q.T, input_precision="ieee") - lse[None, :]) * LOG2E)
    if MASKED:
        p = tl.where(visible, p, 0.0)
    dv = tl.dot(p.to(do.dtype), do, dv, input_precision="ieee")
    ds = p * (tl.dot(v, do.T, input_precision="ieee") - delta[None, :])
    return tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee"), dv


@triton.jit
def block_causal_attention_dkv_kernel(
    q_ptr,  # (B, H, S, D)
    k_ptr,
    v_ptr,
    starts_ptr,  # (S,) int32: the first token that sees a key
    do_ptr,  # (B, S, H * D)
    lse_ptr,  # (B * H, S) float32
    delta_ptr,  # (B * H, S) float32
    dk_ptr,  # (B, H, S, D)
    dv_ptr,
    stride_qb,
    stride_qh,
    stride_ql,
    stride_kb,
    stride_kh,
    stride_kl,
    stride_vb,
    stride_vh,
    stride_vl,
    H,
    S,
    BLOCK_L: tl.constexpr,
    BLOCK_S: tl.constexpr,
    D: tl.constexpr,
):
    col = tl.program_id(0) * BLOCK_S  # the first keys are seen by most tokens
    head = tl.program_id(1)
    b, h = head // H, head % H
    offs_s, offs_d = col + tl.arange(0, BLOCK_S), tl.arange(0, D)
    mask_s = offs_s < S
    k = head_rows(k_ptr, b, h, col, stride_kb, stride_kh, stride_kl, S, BLOCK_S, D, True)
    v = head_rows(v_ptr, b, h, col, stride_vb, stride_vh, stride_vl, S, BLOCK_S, D, True)
    dk = tl.zeros((BLOCK_S, D), tl.float32)
    dv = tl.zeros((BLOCK_S, D), tl.float32)

    starts = tl.load(starts_ptr + offs_s, mask=mask_s, other=0)
    first = tl.load(starts_ptr + col)
    plain = first + tl.cdiv(tl.load(starts_ptr + tl.minimum(col + BLOCK_S, S) - 1) - first, BLOCK_L) * BLOCK_L
    offs_r = head.to(tl.int64) * S
    for row in range(first, plain, BLOCK_L):
        offs_l = row + tl.arange(0, BLOCK_L)
        q = head_rows(q_ptr, b, h, row, stride_qb, stride_qh, stride_ql, S, BLOCK_L, D, True)
        do = head_rows(do_ptr, b, h, row, S * H * D, D, H * D, S, BLOCK_L, D, True)
        lse = tl.load(lse_ptr + offs_r + offs_l, mask=offs_l < S, other=0.0)
        delta = tl.load(delta_ptr + offs_r + offs_l, mask=offs_l < S, other=0.0)
        visible = offs_l[None, :] >= starts[:, None]
        dk, dv = dkv_step(q, k, v, do, lse, delta, dk, dv, visible, True)
    for row in range(plain, S, BLOCK_L):  # rows beyond S are zeros, and add nothing
        offs_l = row + tl.arange(0, BLOCK_L)
        q = head_rows(q_ptr, b, h, row, stride_qb, stride_qh, stride_ql, S, BLOCK_L, D, True)
        do = head_rows(do_ptr, b, h, row, S * H * D, D, H * D, S, BLOCK_L, D, True)
        lse = tl.load(lse_ptr + offs_r + offs_l, mask=offs_l < S, other=0.0)
        delta = tl.load(delta_ptr + offs_r + offs_l, mask=offs_l < S, other=0.0)
        dk, dv = dkv_step(q, k, v, do, lse, delta, dk, dv, None, False)
    offs = (offs_r + offs_s)[:, None] * D + offs_d[None, :]
    tl.store(dk_ptr + offs, dk.to(dk_ptr.dtype.element_ty), mask=mask_s[:, None])
    tl.store(dv_ptr + offs, dv.to(dv_ptr.dtype.element_ty), mask=mask_s[:, None])


@functools.lru_cache(maxsize=64)
def steps_of(lengths: tuple[int, ...], device: torch.device, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(ends, starts), (S,) int32 each: how many keys a token sees, and the first token that sees it.

    Cached, so that only a first call copies to the device. kind, the tensors' class, keeps those of a tracer apart.
    """
    ends: list[int] = []
    starts: list[int] = []
    for length in lengths:
        start = len(ends)
        ends += [start + length] * length
        starts += [start] * length
    table = torch.tensor([ends, starts], dtype=torch.int32, device=device)
    first, second = table.unbind()
    return first, second


# Tiles by head dimension and bytes of an element: from offline compilation, without spills; no GPU has measured them.
# Those of float32, which is for checking, fit the registers of any GPU.
def fwd_tile(element: int) -> Tile:
    return Tile(16, 32, 4, 2) if element == 4 else Tile(128, 64, 8, 3)


def dq_tile(element: int, hopper: bool) -> Tile:
    return Tile(16, 32, 4, 2) if element == 4 else Tile(64, 64 if hopper else 32, 4, 2)


def dkv_tile(D: int, element: int) -> Tile:
    return Tile(16, 16, 4, 2) if element == 4 else Tile(64, 64, 4 if D <= 64 else 8, 2)


def launch(tile: Tile) -> dict[str, Any]:
    return {"BLOCK_L": tile.queries, "BLOCK_S": tile.keys, "num_warps": tile.warps, "num_stages": tile.stages}


class BlockCausalAttention(torch.autograd.Function):
    """Saves q, k, v, the result and one number a row: the backward computes the softmax again from them."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
        B, H, S, D = q.shape
        out = torch.empty(B, S, H * D, device=q.device, dtype=q.dtype)
        lse = torch.empty(B * H, S, device=q.device, dtype=torch.float32)
        ctx.lengths = lengths
        ctx.save_for_backward(q, k, v, out, lse)
        if out.numel() > 0:
            ends, _ = steps_of(lengths, q.device, type(q).__name__)
            tile = fwd_tile(q.element_size())
            block_causal_attention_fwd_kernel[(triton.cdiv(S, tile.queries), B * H)](
                q,
                k,
                v,
                ends,
                out,
                lse,
                *q.stride()[:3],
                *k.stride()[:3],
                *v.stride()[:3],
                H,
                S,
                D=D,
                **launch(tile),
            )
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, do: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        q, k, v, out, lse = ctx.saved_tensors
        B, H, S, D = q.shape
        do = do.contiguous()
        dq, dk, dv = (torch.empty(B, H, S, D, device=q.device, dtype=q.dtype) for _ in range(3))
        if out.numel() > 0:
            ends, starts = steps_of(ctx.lengths, q.device, type(q).__name__)
            delta = torch.empty_like(lse)
            strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
            tile = dq_tile(q.element_size(), capability(q.device) >= (9, 0))
            block_causal_attention_dq_kernel[(triton.cdiv(S, tile.queries), B * H)](
                q, k, v, ends, out, do, lse, delta, dq, *strides, H, S, D=D, **launch(tile)
            )
            tile = dkv_tile(D, q.element_size())
            block_causal_attention_dkv_kernel[(triton.cdiv(S, tile.keys), B * H)](
                q, k, v, starts, do, lse, delta, dk, dv, *strides, H, S, D=D, **launch(tile)
            )
        return dq, dk, dv, None


def why_not(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: tuple[int, ...]) -> str | None:
    return why_not_heads(q=q, k=k, v=v)


def block_causal_attention_triton(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: tuple[int, ...]
) -> torch.Tensor:
    result: torch.Tensor = BlockCausalAttention.apply(q, k, v, lengths)
    return result
