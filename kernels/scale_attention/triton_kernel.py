"""scale_attention in Triton: a program holds a tile of queries in registers and streams keys and values past it.

Few queries leave most of a GPU idle, so the keys are split too: programs then write unnormalised sums in float32, and
the last one adds them up (`triton_split`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from varsr_engine.kernels.triton_backend import capability
from varsr_engine.kernels.triton_split import arrives_last, counters

LOG2E = tl.constexpr(1.4426950408889634)
# With a bound b, weights are 2^14 exp(s - b): they fit float16, and none is subnormal there up to LARGEST_STATIC_BOUND.
HEADROOM = tl.constexpr(14.0)

HEAD_DIMS = (16, 32, 64, 128)
SLOTS = 132  # multiprocessors of an H100 or H200; on another GPU only the balance of the splits is worse
MOST_SPLITS = 8


class Cut(NamedTuple):
    """How a call is cut: tile of queries, block of keys, the last keys' block, blocks and number of splits."""

    block_l: int
    block_s: int
    tail: int  # power of two that holds what is left of S after whole blocks; 0 where nothing is
    blocks: int  # whole blocks of a split
    splits: int
    warps: int
    stages: int


@triton.jit
def head_rows(
    source, b, h, row, stride_b, stride_h, stride_l, limit, ROWS: tl.constexpr, D: tl.constexpr, MASKED: tl.constexpr
):
    """(ROWS, D) of one head: rows row... of a tensor (B, H, limit, D), zeros beyond it; not MASKED: all inside."""
    offs = tl.arange(0, ROWS)
    base = source + b.to(tl.int64) * stride_b + h.to(tl.int64) * stride_h + row * stride_l
    pointers = base + offs[:, None] * stride_l + tl.arange(0, D)[None, :]
    if MASKED:
        return tl.load(pointers, mask=(row + offs < limit)[:, None], other=0.0)
    return tl.load(pointers)


@triton.jit
def attend(q, k, v, acc, norm, top, visible, MASKED: tl.constexpr, STATIC: tl.constexpr):
    """One block of keys: (acc, norm, top) with sum p v, sum p and the maximum so far; visible masks the scores.

    STATIC: top is a fixed shift in powers of two, and nothing is ever rescaled.
    """
    s = tl.dot(q, k.T, input_precision="ieee")
    if MASKED:
        s = tl.where(visible, s, float("-inf"))
    if STATIC:
        p = tl.exp2(s * LOG2E - top)
    else:
        before, top = top, tl.maximum(top, tl.max(s, axis=1))
        p = tl.exp2((s - top[:, None]) * LOG2E)  # the difference first: large scores must not round away
        shrink = tl.exp2((before - top) * LOG2E)
        norm = norm * shrink
        acc = acc * shrink[:, None]
    norm += tl.sum(p, axis=1)
    acc = tl.dot(p.to(v.dtype), v, acc, input_precision="ieee")
    return acc, norm, top


@triton.jit(do_not_specialize=["L", "S", "blocks"])
def scale_attention_fwd_kernel(
    q_ptr,  # (B, H, L, D)
    k,  # (B, H, S, D), a descriptor of blocks or a pointer
    v,
    k_ptr,  # (B, H, S, D)
    v_ptr,
    bound_ptr,  # (H,) float32 if STATIC
    out_ptr,  # (B, L, H * D) in rows
    acc_ptr,  # (splits, B * H, L, D) float32 if SPLIT: sums of p v
    norm_ptr,  # (splits, B * H, L) float32 if SPLIT: sums of p
    top_ptr,  # (splits, B * H, L) float32 if SPLIT and not STATIC: the maximum that a split's p are relative to
    counter_ptr,  # a counter a tile of queries and head if SPLIT
    stride_qb,
    stride_qh,
    stride_ql,
    stride_kb,
    stride_kh,
    stride_kl,
    stride_vb,
    stride_vh,
    stride_vl,
    stride_ob,
    stride_ol,
    H,
    L,
    S,
    blocks,  # whole blocks of a split
    BLOCK_L: tl.constexpr,
    BLOCK_S: tl.constexpr,
    TAIL: tl.constexpr,
    D: tl.constexpr,
    STATIC: tl.constexpr,
    SPLIT: tl.constexpr,
    TMA: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_L
    head, split = tl.program_id(1), tl.program_id(2)
    b, h = head // H, head % H
    offs_l, offs_d = row + tl.arange(0, BLOCK_L), tl.arange(0, D)
    mask_l = offs_l < L
    q = head_rows(q_ptr, b, h, row, stride_qb, stride_qh, stride_ql, L, BLOCK_L, D, True)
    acc = tl.zeros((BLOCK_L, D), tl.float32)
    norm = tl.zeros((BLOCK_L,), tl.float32)
    if STATIC:
        top = tl.load(bound_ptr + h).to(tl.float32) * LOG2E - HEADROOM
    else:
        top = tl.full((BLOCK_L,), float("-inf"), tl.float32)

    whole = S // BLOCK_S
    first = split * blocks
    for col in range(first * BLOCK_S, tl.minimum(first + blocks, whole) * BLOCK_S, BLOCK_S):
        if TMA:
            keys = k.load([b, h, col, 0]).reshape(BLOCK_S, D)
            values = v.load([b, h, col, 0]).reshape(BLOCK_S, D)
        else:
            keys = head_rows(k, b, h, col, stride_kb, stride_kh, stride_kl, S, BLOCK_S, D, False)
            values = head_rows(v, b, h, col, stride_vb, stride_vh, stride_vl, S, BLOCK_S, D, False)
        acc, norm, top = attend(q, keys, values, acc, norm, top, None, False, STATIC)
    if TAIL > 0:  # noqa: SIM102, the first is decided at compile time
        if split == tl.num_programs(2) - 1:
            col = whole * BLOCK_S
            keys = head_rows(k_ptr, b, h, col, stride_kb, stride_kh, stride_kl, S, TAIL, D, True)
            values = head_rows(v_ptr, b, h, col, stride_vb, stride_vh, stride_vl, S, TAIL, D, True)
            visible = (col + tl.arange(0, TAIL) < S)[None, :]
            acc, norm, top = attend(q, keys, values, acc, norm, top, visible, True, STATIC)

    if SPLIT:
        heads, splits = tl.num_programs(1), tl.num_programs(2)
        offs = (split * heads + head).to(tl.int64) * L + offs_l
        tl.store(acc_ptr + offs[:, None] * D + offs_d[None, :], acc, mask=mask_l[:, None])
        tl.store(norm_ptr + offs, norm, mask=mask_l)
        if not STATIC:
            tl.store(top_ptr + offs, top, mask=mask_l)
        if not arrives_last(counter_ptr + head * tl.num_programs(0) + tl.program_id(0), splits):
            return
        acc = tl.zeros((BLOCK_L, D), tl.float32)
        norm = tl.zeros((BLOCK_L,), tl.float32)
        if not STATIC:
            top = tl.full((BLOCK_L,), float("-inf"), tl.float32)
            for other in range(splits):
                offs = (other * heads + head).to(tl.int64) * L + offs_l
                theirs = tl.load(top_ptr + offs, mask=mask_l, other=0.0, cache_modifier=".cg")
                top = tl.maximum(top, theirs)
        for other in range(splits):
            offs = (other * heads + head).to(tl.int64) * L + offs_l
            part = tl.load(
                acc_ptr + offs[:, None] * D + offs_d[None, :], mask=mask_l[:, None], other=0.0, cache_modifier=".cg"
            )
            part_norm = tl.load(norm_ptr + offs, mask=mask_l, other=1.0, cache_modifier=".cg")
            if not STATIC:
                theirs = tl.load(top_ptr + offs, mask=mask_l, other=0.0, cache_modifier=".cg")
                weight = tl.exp2((theirs - top) * LOG2E)
                part *= weight[:, None]
                part_norm *= weight
            acc += part
            norm += part_norm
    y = (acc / norm[:, None]).to(out_ptr.dtype.element_ty)
    offs = b.to(tl.int64) * stride_ob + offs_l[:, None] * stride_ol + h * D + offs_d[None, :]
    tl.store(out_ptr + offs, y, mask=mask_l[:, None])


def why_not_heads(**tensors: torch.Tensor) -> str | None:
    """Why the kernels cannot read these (B, H, *, D)."""
    for name, t in tensors.items():
        if t.shape[3] not in HEAD_DIMS:
            return f"a head dimension of {t.shape[3]} is none of {', '.join(map(str, HEAD_DIMS))}"
        if t.stride(3) != 1:
            return f"the last dimension of {name} is not contiguous"
    return None


def why_not(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
) -> str | None:
    if out is not None and out.stride(2) != 1:
        return "the last dimension of out is not contiguous"
    return why_not_heads(q=q, k=k, v=v)


def tile_of(L: int, D: int, element: int, hopper: bool) -> tuple[int, int, int, int, int]:
    """(rows of queries, keys of a block, warps, stages, tiles that keep a multiprocessor busy).

    From offline compilation, without spills (but float32 at D = 128); no GPU has measured it yet. 128 x 128 with 4
    warps is what torch's FlexAttention takes on an H100 at D = 64.
    """
    if element == 4:  # float32 is for checking: small tiles, as its products hold their operands in registers
        return 16, 32, 4, 2, 3
    if L <= 16:
        return 16, 64, 4, 4, 3
    if L <= 384 and (hopper or D <= 64):  # 128 rows would be too few programs, or too many rows of padding
        return 64, 64, 4, 3, 2
    if hopper and D <= 64:
        return 128, 128, 4, 3, 1
    return 128, 64, 8, 3, 1


def cut_of(heads: int, L: int, S: int, D: int, element: int, hopper: bool) -> Cut:
    """The cut of a call over `heads` = B * H heads, with the number of splits that a model of the GPU prefers.

    In the model programs run in rounds, as many at a time as fit. A program takes the time of its keys and of 128 more
    to start, of 64 more to write partial sums; the last program takes that of 32 more a split to add them up.
    """
    block_l, block_s, warps, stages, resident = tile_of(L, D, element, hopper)
    tiles, whole, left = heads * triton.cdiv(L, block_l), S // block_s, S % block_s

    def duration(splits: int) -> int:
        partial, last = (64, 32 * splits) if splits > 1 else (0, 0)
        rounds = triton.cdiv(tiles * splits, resident * SLOTS)
        return rounds * (triton.cdiv(whole, splits) * block_s + 128 + partial) + last

    splits = min(range(1, max(1, min(whole, MOST_SPLITS)) + 1), key=duration)
    blocks = triton.cdiv(whole, splits)
    splits = triton.cdiv(whole, blocks) if blocks else 1  # rounding up leaves no split empty
    tail = max(16, triton.next_power_of_2(left)) if left else 0
    return Cut(block_l, block_s, tail, blocks, splits, warps, stages)


def uses_tma(*tensors: torch.Tensor) -> bool:
    """Whether all of (B, H, S, D) can come through descriptors: on Hopper, rows aligned to 16 bytes."""
    aligned = all(t.stride(d) > 0 and t.stride(d) * t.element_size() % 16 == 0 for t in tensors for d in range(3))
    offsets = all(t.storage_offset() * t.element_size() % 16 == 0 for t in tensors)
    return aligned and offsets and tensors[0].element_size() == 2 and capability(tensors[0].device) >= (9, 0)


def scale_attention_triton(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
) -> torch.Tensor:
    B, H, L, D = q.shape
    S = k.shape[2]
    out = torch.empty(B, L, H * D, device=q.device, dtype=q.dtype) if out is None else out
    if out.numel() == 0:
        return out
    cut = cut_of(B * H, L, S, D, q.element_size(), capability(q.device) >= (9, 0))
    split, static = cut.splits > 1, bound is not None
    acc = norm = top = counter = None
    rows = triton.cdiv(L, cut.block_l)
    if split:
        shape = (cut.splits, B * H, L)
        counter = counters(rows * B * H, q.device)
        acc = torch.empty(*shape, D, device=q.device, dtype=torch.float32)
        norm = torch.empty(shape, device=q.device, dtype=torch.float32)
        top = None if static else torch.empty(shape, device=q.device, dtype=torch.float32)
    tma = cut.blocks > 0 and uses_tma(k, v)
    block = [1, 1, cut.block_s, D]
    scale_attention_fwd_kernel[(rows, B * H, cut.splits)](
        q,
        TensorDescriptor.from_tensor(k, block) if tma else k,
        TensorDescriptor.from_tensor(v, block) if tma else v,
        k,
        v,
        bound,
        out,
        acc,
        norm,
        top,
        counter,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        *out.stride()[:2],
        H,
        L,
        S,
        cut.blocks,
        BLOCK_L=cut.block_l,
        BLOCK_S=cut.block_s,
        TAIL=cut.tail,
        D=D,
        STATIC=static,
        SPLIT=split,
        TMA=tma,
        num_warps=cut.warps,
        num_stages=cut.stages,
    )
    return out
