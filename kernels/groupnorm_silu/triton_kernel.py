"""groupnorm_silu in Triton, channels-last: moments of groups over chunks of pixels, then a sweep that merges them.

Each map is read twice and written once. Nothing depends on the order in which programs run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

WIDEST_GROUP = 1024  # channels
STEP_STATISTICS, STEP_NORMALISE = 16384, 4096  # elements in registers at a time
FEWEST = 128  # programs, or steps get smaller: a large GPU has 132 multiprocessors
MOST_CHUNKS, MOST_PROGRAMS = 256, 1056  # of statistics, which every program of the second kernel reads; of that kernel


@triton.jit(do_not_specialize=["P", "chunk_pixels"])
def group_moments_kernel(
    x_ptr,  # (B, P, C)
    moments_ptr,  # (2, B, chunks, G) float32: mean of a group in a chunk, and sum of squared distances from it
    P,
    chunk_pixels,
    C: tl.constexpr,
    G: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A program takes a chunk of pixels and BLOCK_G whole groups, which rarely are a power of two of channels wide."""
    SIZE: tl.constexpr = C // G
    chunk, b = tl.program_id(0), tl.program_id(2)
    lane = tl.arange(0, BLOCK_C)
    channel = tl.program_id(1) * (BLOCK_G * SIZE) + lane
    mask_c = (lane < BLOCK_G * SIZE) & (channel < C)
    first = chunk * chunk_pixels
    last = min(first + chunk_pixels, P)
    rows = x_ptr + b.to(tl.int64) * P * C

    mean = tl.zeros((BLOCK_C,), tl.float32)
    square = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(first, last, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        mask = (pixel < last)[:, None] & mask_c[None, :]
        x = tl.load(rows + pixel.to(tl.int64)[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        before, count = start - first, min(last - start, BLOCK_P)
        part = tl.sum(x, axis=0) / count
        centred = tl.where(mask, x - part[None, :], 0.0)
        delta, share = part - mean, count / (before + count)
        square += tl.sum(centred * centred, axis=0) + delta * delta * (before * share)
        mean += delta * share

    # From channels to their groups, again by distances from the mean.
    group = tl.arange(0, BLOCK_G)
    inside = ((lane // SIZE)[:, None] == group[None, :]) & mask_c[:, None]
    group_mean = tl.sum(tl.where(inside, mean[:, None], 0.0), axis=0) / SIZE
    delta = mean[:, None] - group_mean[None, :]
    group_square = tl.sum(tl.where(inside, square[:, None] + (last - first) * delta * delta, 0.0), axis=0)
    offs_g = tl.program_id(1) * BLOCK_G + group
    offs = (b * tl.num_programs(0) + chunk) * G + offs_g
    tl.store(moments_ptr + offs, group_mean, mask=offs_g < G)
    squares_ptr = moments_ptr + tl.num_programs(2) * tl.num_programs(0) * G
    tl.store(squares_ptr + offs, group_square, mask=offs_g < G)


@triton.jit(do_not_specialize=["P", "chunks", "chunk_pixels", "program_pixels"])
def group_normalise_kernel(
    x_ptr,  # (B, P, C)
    moments_ptr,  # (2, B, chunks, G)
    weight_ptr,  # (C,)
    bias_ptr,
    out_ptr,  # (B, P, C), which may be x
    P,
    chunks,
    chunk_pixels,  # of the moments
    program_pixels,
    eps,
    C: tl.constexpr,
    G: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
):
    """A program takes some pixels and BLOCK_C channels, which belong to at most BLOCK_G groups."""
    SIZE: tl.constexpr = C // G
    b = tl.program_id(2)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = channel < C

    group = tl.program_id(1) * BLOCK_C // SIZE + tl.arange(0, BLOCK_G)
    offs_chunk = tl.arange(0, BLOCK_CHUNKS)
    mask_m = (offs_chunk < chunks)[:, None] & (group < G)[None, :]
    offs_m = (b * chunks + offs_chunk)[:, None] * G + group[None, :]
    means = tl.load(moments_ptr + offs_m, mask=mask_m, other=0.0)
    squares = tl.load(moments_ptr + tl.num_programs(2) * chunks * G + offs_m, mask=mask_m, other=0.0)
    counts = tl.minimum(P - offs_chunk * chunk_pixels, chunk_pixels).to(tl.float32)
    group_mean = tl.sum(tl.where(mask_m, means * counts[:, None], 0.0), axis=0) / P
    delta = means - group_mean[None, :]
    spread = tl.where(mask_m, squares + delta * delta * (counts * SIZE)[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(spread, axis=0) / P / SIZE + eps)

    inside = (channel // SIZE)[:, None] == group[None, :]
    mean = tl.sum(tl.where(inside, group_mean[None, :], 0.0), axis=1)
    factor = tl.sum(tl.where(inside, rstd[None, :], 0.0), axis=1)
    factor *= tl.load(weight_ptr + channel, mask=mask_c, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=mask_c, other=0.0).to(tl.float32)

    first = tl.program_id(0) * program_pixels
    last = min(first + program_pixels, P)
    base = b.to(tl.int64) * P * C
    for start in range(first, last, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        mask = (pixel < last)[:, None] & mask_c[None, :]
        offs = base + pixel.to(tl.int64)[:, None] * C + channel[None, :]
        x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        y = (x - mean[None, :]) * factor[None, :] + bias[None, :]
        if SILU:
            y *= tl.sigmoid(y)
        tl.store(out_ptr + offs, y.to(out_ptr.dtype.element_ty), mask=mask)


def why_not(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float = 1e-6,
    silu: bool = True,
    out: torch.Tensor | None = None,
) -> str | None:
    if out is not None and not out.is_contiguous(memory_format=torch.channels_last):
        return "out is not channels-last"
    if not x.is_contiguous(memory_format=torch.channels_last):
        return "x is not channels-last"
    if x.shape[1] > groups * WIDEST_GROUP:
        return f"a group has {x.shape[1] // groups} channels, more than {WIDEST_GROUP}"
    return None


def pixels_of(pixels: int, others: int, step: int, most: int) -> tuple[int, int]:
    """(pixels a step, pixels a program) of a sweep by at most `most` programs, `others` of which share each pixel."""
    while step > 8 and others * triton.cdiv(pixels, step) < FEWEST:
        step //= 2
    return step, step * triton.cdiv(triton.cdiv(pixels, step), max(1, most // others))


def channels_of(C: int) -> int:
    """Channels a program normalises: none is idle where they divide C, and a run of 32 fills whole memory sectors."""
    divisor = C & -C
    return min(divisor if divisor >= 32 else triton.next_power_of_2(C), 128)


def groupnorm_silu_triton(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float = 1e-6,
    silu: bool = True,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    (B, C, H, W), G = x.shape, groups
    P, size = H * W, C // groups
    out = torch.empty_like(x) if out is None else out
    if out.numel() == 0:
        return out
    block_g = min(1 << (max(1, 256 // size).bit_length() - 1), triton.next_power_of_2(G))
    block_c, group_blocks = triton.next_power_of_2(block_g * size), triton.cdiv(G, block_g)
    step, chunk_pixels = pixels_of(P, B * group_blocks, min(128, STEP_STATISTICS // block_c), MOST_CHUNKS)
    chunks = triton.cdiv(P, chunk_pixels)
    moments = torch.empty(2, B, chunks, G, device=x.device, dtype=torch.float32)
    group_moments_kernel[(chunks, group_blocks, B)](
        x,
        moments,
        P,
        chunk_pixels,
        C=C,
        G=G,
        BLOCK_P=step,
        BLOCK_G=block_g,
        BLOCK_C=block_c,
        num_warps=warps(step * block_c, 2048),
    )
    block_c = channels_of(C)
    channel_blocks = triton.cdiv(C, block_c)
    step, program_pixels = pixels_of(P, B * channel_blocks, STEP_NORMALISE // block_c, MOST_PROGRAMS)
    group_normalise_kernel[(triton.cdiv(P, program_pixels), channel_blocks, B)](
        x,
        moments,
        weight.contiguous(),
        bias.contiguous(),
        out,
        P,
        chunks,
        chunk_pixels,
        program_pixels,
        eps,
        C=C,
        G=G,
        SILU=silu,
        BLOCK_P=step,
        BLOCK_C=block_c,
        BLOCK_G=triton.next_power_of_2(min(G, (block_c - 1) // size + 2)),
        BLOCK_CHUNKS=triton.next_power_of_2(chunks),
        num_warps=warps(step * block_c, 1024),
    )
    return out


def warps(elements: int, each: int) -> int:
    return min(8, max(1, elements // each))
