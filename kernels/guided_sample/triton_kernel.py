"""guided_sample in Triton: guidance, the head's product with a maximum a tile, then the argmax or a draw.

A token is drawn by one program, from its own logits alone. Top-k and top-p need no sort: both thresholds are found bit
by bit, on integers that order as the logits do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from varsr_engine.kernels.guided_sample.reference import Sampling
from varsr_engine.kernels.panels import is_packed
from varsr_engine.kernels.philox.triton_kernel import philox_gumbel4
from varsr_engine.kernels.triton_product import operands, product, product_tile, programs, tile_of_program
from varsr_engine.kernels.triton_split import arrives_last, counters

WIDEST = 8192  # logits of a row, which a program draws from in its registers


@triton.jit
def guidance_fwd_kernel(
    cond_ptr,  # (B, L * C)
    uncond_ptr,
    ratio_ptr,  # (B,)
    out_ptr,
    size,  # L * C
    BLOCK: tl.constexpr,
):
    """(1 + t) cond - t uncond in float32, rounded once: at strong guidance the difference is small."""
    b = tl.program_id(1)
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    place = b.to(tl.int64) * size + offs
    t = tl.load(ratio_ptr + b).to(tl.float32)
    cond = tl.load(cond_ptr + place, mask=mask, other=0.0).to(tl.float32)
    uncond = tl.load(uncond_ptr + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, ((1.0 + t) * cond - t * uncond).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def first_best(best_ptr, index_ptr, tokens_ptr, offs_m, mask_m, TILES, BLOCK_T: tl.constexpr):
    """The first of a row's best columns: tiles follow one another, so it lies in the first of the best tiles."""
    best = tl.full((offs_m.shape[0],), float("-inf"), tl.float32)
    token = tl.zeros((offs_m.shape[0],), tl.int32)
    for start in range(0, TILES, BLOCK_T):
        offs_t = start + tl.arange(0, BLOCK_T)
        place = offs_m[:, None] * TILES + offs_t[None, :]
        mask = mask_m[:, None] & (offs_t < TILES)[None, :]
        theirs = tl.load(best_ptr + place, mask=mask, other=float("-inf"), cache_modifier=".cg")
        top, tile = tl.max(theirs, axis=1, return_indices=True, return_indices_tie_break_left=True)
        index = tl.load(index_ptr + offs_m * TILES + start + tile, mask=mask_m, other=0, cache_modifier=".cg")
        token = tl.where(top > best, index, token)
        best = tl.maximum(best, top)
    tl.store(tokens_ptr + offs_m, token.to(tl.int64), mask=mask_m)


@triton.jit(do_not_specialize=["M"])  # one compilation for all scales, the one token of the first included
def head_fwd_kernel(
    x,  # (M, K)
    w,  # (N, K)
    bias_ptr,  # (N,)
    logits_ptr,  # (M, N) float32
    best_ptr,  # (M, column tiles) float32: the largest logit of a tile
    index_ptr,  # (M, column tiles) int32: the first column that has it
    tokens_ptr,  # (M,) int64 if GREEDY: written by the last tile of its rows
    counter_ptr,  # a counter a tile of rows if GREEDY
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
    TMA: tl.constexpr,
    GREEDY: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    row, col = tile_of_program(M, N, BLOCK_M, BLOCK_N)
    acc = product(x, w, M, N, K, row, col, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, TMA)
    offs_m, offs_n = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
    mask_m, mask_n = offs_m < M, offs_n < N
    bias = tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    logits = acc + bias[None, :]
    place = offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
    tl.store(logits_ptr + place, logits, mask=mask_m[:, None] & mask_n[None, :])
    if GREEDY:
        logits = tl.where(mask_n[None, :], logits, float("-inf"))
        best, index = tl.max(logits, axis=1, return_indices=True, return_indices_tie_break_left=True)
        candidate = offs_m * tl.cdiv(N, BLOCK_N) + col // BLOCK_N
        tl.store(best_ptr + candidate, best, mask=mask_m)
        tl.store(index_ptr + candidate, index + col, mask=mask_m)
        tiles = tl.cdiv(N, BLOCK_N)
        if arrives_last(counter_ptr + row // BLOCK_M, tiles):
            first_best(best_ptr, index_ptr, tokens_ptr, offs_m, mask_m, tiles, BLOCK_T)


@triton.jit
def ordered_key(x):
    """uint32 that orders as the float32 x does, above 0 for every number."""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where((bits >> 31) == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def kth_largest(key, k):
    """Of each row (R, V), the largest t that at least k keys reach: (R, 1)."""
    t = tl.zeros((key.shape[0], 1), tl.uint32)
    bit = tl.full((1, 1), 0x80000000, tl.uint32)
    for _ in range(32):
        reached = tl.sum((key >= (t | bit)).to(tl.int32), axis=1, keep_dims=True)
        t = tl.where(reached >= k, t | bit, t)
        bit = bit >> 1
    return t


@triton.jit
def mass_below(key, probability, t):
    return tl.sum(tl.where(key < t, probability, 0.0), axis=1, keep_dims=True)


@triton.jit
def nucleus_edge(key, probability, budget):
    """The largest t (R, 1) with at most `budget` of a row's mass below it: what is below goes, what is above stays."""
    t = tl.zeros((key.shape[0], 1), tl.uint32)
    bit = tl.full((1, 1), 0x80000000, tl.uint32)
    for _ in range(32):
        t = tl.where(mass_below(key, probability, t | bit) <= budget, t | bit, t)
        bit = bit >> 1
    return t


@triton.jit
def outside_nucleus(x, key, keep, budget, offs_v):
    """Where top-p drops a token: its mass and that of all before it, in ascending order, is at most `budget`.

    Equal logits come in order of their index. The last of all stays.
    """
    best = tl.max(x, axis=1, keep_dims=True)
    weight = tl.where(keep, tl.exp(x - best), 0.0)
    probability = weight / tl.sum(weight, axis=1, keep_dims=True)
    edge = nucleus_edge(key, probability, budget)
    tie = key == edge
    place = tl.cumsum(tie.to(tl.int32), axis=1)
    each = tl.max(tl.where(tie, probability, 0.0), axis=1, keep_dims=True)
    mass = mass_below(key, probability, edge) + place.to(tl.float32) * each
    last = tl.max(tl.where(x == best, offs_v, -1), axis=1, keep_dims=True)
    return ((key < edge) | (tie & (mass <= budget))) & (offs_v != last)


@triton.jit(do_not_specialize=["step", "stream"])  # one compilation for all steps
def sample_fwd_kernel(
    logits_ptr,  # (B, L, V)
    tokens_ptr,  # (B, L) int64
    top_k_ptr,  # (B,)
    top_p_ptr,
    temperature_ptr,
    seeds_ptr,
    positions_ptr,  # (B, L), or (L,) with stride_pb 0
    stride_pb,
    stride_pl,
    L,
    V,
    step,
    stream,
    BLOCK_L: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Draws BLOCK_L tokens of one image: its settings are scalars, what they switch off is not computed."""
    b = tl.program_id(1).to(tl.int64)
    offs_l = (tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)).to(tl.int64)
    offs_v = tl.arange(0, BLOCK_V)[None, :]
    mask_l, mask_v = offs_l < L, offs_v < V
    place = (b * L + offs_l)[:, None] * V + offs_v
    logits = tl.load(logits_ptr + place, mask=mask_l[:, None] & mask_v, other=0.0)
    logits = tl.where(mask_v, logits, float("-inf"))
    top_k = tl.load(top_k_ptr + b)
    token = tl.argmax(logits, axis=1)  # of equal logits the first, also where top_k = 1 would leave several
    if top_k != 1:
        x = tl.div_rn(logits, tl.load(temperature_ptr + b).to(tl.float32))
        x = tl.where(x == 0.0, 0.0, x)  # -0 is equal to 0, their bits are not
        key = tl.where(mask_v, ordered_key(x), 0)
        keep = key > 0
        if (top_k > 0) & (top_k < V):
            keep = key >= kth_largest(key, top_k)
        top_p = tl.load(top_p_ptr + b).to(tl.float32)
        if top_p < 1.0:
            keep = keep & ~outside_nucleus(x, key, keep, 1.0 - top_p, offs_v)
        position = tl.load(positions_ptr + b * stride_pb + offs_l * stride_pl, mask=mask_l, other=0)
        group = tl.arange(0, BLOCK_V // 4)
        g0, g1, g2, g3 = philox_gumbel4(tl.load(seeds_ptr + b), position[:, None], group[None, :], step, stream)
        noise = tl.interleave(tl.interleave(g0, g2), tl.interleave(g1, g3))
        token = tl.argmax(tl.where(keep, x + noise, float("-inf")), axis=1)
    tl.store(tokens_ptr + b * L + offs_l, token.to(tl.int64), mask=mask_l)


def why_not(
    cond: torch.Tensor,
    uncond: torch.Tensor | None,
    ratio: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    sampling: Sampling | None = None,
) -> str | None:
    if is_packed(weight):
        return "the weight is packed for a CPU"
    if sampling is not None and weight.shape[0] > WIDEST:
        return f"V is {weight.shape[0]}, more than {WIDEST}"
    return None


def guide(cond: torch.Tensor, uncond: torch.Tensor | None, ratio: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, L, C) in the head's dtype."""
    B, L, C = cond.shape
    if uncond is None:
        return cond.to(dtype).contiguous()
    out = torch.empty(B, L, C, device=cond.device, dtype=dtype)
    if out.numel() > 0:
        BLOCK = 1024
        guidance_fwd_kernel[(triton.cdiv(L * C, BLOCK), B)](
            cond.contiguous(), uncond.contiguous(), ratio.contiguous(), out, L * C, BLOCK=BLOCK
        )
    return out


def draw(logits: torch.Tensor, tokens: torch.Tensor, s: Sampling) -> None:
    B, L, V = logits.shape
    BLOCK_V = max(triton.next_power_of_2(V), 16)
    BLOCK_L = max(4096 // BLOCK_V, 1)  # of V alone: sums must not depend on the map's size
    sample_fwd_kernel[(triton.cdiv(L, BLOCK_L), B)](
        logits,
        tokens,
        s.top_k.contiguous(),
        s.top_p.contiguous(),
        s.temperature.contiguous(),
        s.seeds.contiguous(),
        s.positions,
        s.positions.stride(0) if s.positions.ndim == 2 else 0,
        s.positions.stride(-1),
        L,
        V,
        s.step,
        s.stream,
        BLOCK_L=BLOCK_L,
        BLOCK_V=BLOCK_V,
        num_warps=16 if BLOCK_V > 4096 else 8,
    )


def guided_sample_triton(
    cond: torch.Tensor,
    uncond: torch.Tensor | None,
    ratio: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    sampling: Sampling | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    B, L, C = cond.shape
    M, V, device = B * L, weight.shape[0], cond.device
    logits = torch.empty(B, L, V, device=device, dtype=torch.float32)
    tokens = torch.empty(B, L, device=device, dtype=torch.int64)
    if logits.numel() == 0:
        return tokens, logits
    hidden, weight = guide(cond, uncond, ratio, weight.dtype).view(M, C), weight.contiguous()
    tile = product_tile(M, V, C, device, weight.element_size())
    tiles = triton.cdiv(V, tile.n)
    greedy = sampling is None
    best = torch.empty(M, tiles, device=device, dtype=torch.float32) if greedy else None
    index = torch.empty(M, tiles, device=device, dtype=torch.int32) if greedy else None
    head_fwd_kernel[programs(M, V, tile)](
        bias_ptr=bias.contiguous(),
        logits_ptr=logits,
        best_ptr=best,
        index_ptr=index,
        tokens_ptr=tokens if greedy else None,
        counter_ptr=counters(triton.cdiv(M, tile.m), device) if greedy else None,
        GREEDY=greedy,
        BLOCK_T=min(triton.next_power_of_2(tiles), 32),
        **operands(hidden, weight, tile),
    )
    if sampling is not None:
        draw(logits, tokens, sampling)
    return tokens, logits
