"""philox_normal in Triton, and the random numbers inside every other kernel that draws some."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

COUNTERS = 128  # a program: positions times groups of four elements, one a thread (two would spill)


@triton.jit
def philox_words4(seed, position, group, step, stream):
    """The four uint32 words of counter (group, position, step, stream), key = seed: `philox_words` of the reference.

    seed int64 and position are scalars or blocks, group a block, and they broadcast; step and stream are scalars.
    """
    c0, c1 = group.to(tl.uint32), position.to(tl.uint32)
    zero = (c0 + c1) * 0
    return tl.philox(seed, zero + c0, zero + c1, (zero + step).to(tl.uint32), (zero + stream).to(tl.uint32))


@triton.jit
def philox_uniform4(seed, position, group, step, stream):
    """Four float32 blocks in [0, 1]: elements 4 group + 0, 1, 2, 3 of `to_uniform`."""
    w0, w1, w2, w3 = philox_words4(seed, position, group, step, stream)
    u0, u1 = tl.uint_to_uniform_float(w0), tl.uint_to_uniform_float(w1)
    return u0, u1, tl.uint_to_uniform_float(w2), tl.uint_to_uniform_float(w3)


@triton.jit
def philox_normal4(seed, position, group, step, stream):
    """Four float32 blocks of normals: elements 4 group + 0, 1, 2, 3 of `philox_normal`."""
    u0, u1, u2, u3 = philox_uniform4(seed, position, group, step, stream)
    n0, n1 = tl.pair_uniform_to_normal(u0, u1)
    n2, n3 = tl.pair_uniform_to_normal(u2, u3)
    return n0, n1, n2, n3


@triton.jit
def philox_gumbel4(seed, position, group, step, stream):
    """Four float32 blocks of standard Gumbel noise: elements 4 group + 0, 1, 2, 3 of `gumbel`."""
    w0, w1, w2, w3 = philox_words4(seed, position, group, step, stream)
    return gumbel_of_word(w0), gumbel_of_word(w1), gumbel_of_word(w2), gumbel_of_word(w3)


@triton.jit
def gumbel_of_word(word):
    uniform = ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23
    return -tl.log(-tl.log(uniform))


@triton.jit(do_not_specialize=["first", "stream", "B"])  # one compilation for all steps
def philox_normal_fwd_kernel(
    seeds_ptr,  # (B,)
    positions_ptr,  # (B, N), or (N,) with stride_pb 0
    std_ptr,  # (B,) if SCALED
    out_ptr,  # (steps, B, N, count)
    stride_s,
    stride_pb,
    stride_pn,
    B,
    N,
    count,
    first,  # step
    stream,
    SCALED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    step, b = tl.program_id(2) // B, (tl.program_id(2) % B).to(tl.int64)
    offs_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    group = tl.program_id(0) * BLOCK_G + tl.arange(0, BLOCK_G)
    mask_n = offs_n < N
    seed = tl.load(seeds_ptr + b * stride_s)
    position = tl.load(positions_ptr + b * stride_pb + offs_n.to(tl.int64) * stride_pn, mask=mask_n, other=0)
    n0, n1, n2, n3 = philox_normal4(seed, position[:, None], group[None, :], first + step, stream)
    # Interleaved, a thread's four values lie side by side.
    values = tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))
    if SCALED:
        values *= tl.load(std_ptr + b)
    offs_e = tl.program_id(0) * 4 * BLOCK_G + tl.arange(0, 4 * BLOCK_G)
    mask = mask_n[:, None] & (offs_e < count)[None, :]
    row = (step * B + b) * N + offs_n
    tl.store(out_ptr + row[:, None] * count + offs_e[None, :], values, mask=mask)


def why_not(
    seeds: torch.Tensor,
    positions: torch.Tensor,
    count: int,
    steps: range,
    stream: int,
    std: torch.Tensor | None = None,
) -> str | None:
    return None


def philox_normal_triton(
    seeds: torch.Tensor,
    positions: torch.Tensor,
    count: int,
    steps: range,
    stream: int,
    std: torch.Tensor | None = None,
) -> torch.Tensor:
    B, N = seeds.shape[0], positions.shape[-1]
    out = torch.empty(len(steps), B, N, count, device=seeds.device, dtype=torch.float32)
    if out.numel() > 0:
        BLOCK_G = min(triton.next_power_of_2(triton.cdiv(count, 4)), 64)
        BLOCK_N = COUNTERS // BLOCK_G
        philox_normal_fwd_kernel[(triton.cdiv(count, 4 * BLOCK_G), triton.cdiv(N, BLOCK_N), len(steps) * B)](
            seeds,
            positions,
            None if std is None else std.contiguous(),
            out,
            seeds.stride(0),
            positions.stride(0) if positions.ndim == 2 else 0,
            positions.stride(-1),
            B,
            N,
            count,
            steps.start,
            stream,
            SCALED=std is not None,
            BLOCK_N=BLOCK_N,
            BLOCK_G=BLOCK_G,
        )
    return out
