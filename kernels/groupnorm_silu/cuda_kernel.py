"""groupnorm_silu in CUDA C++ (csrc/cuda/groupnorm_silu.cu), channels-last: two reads of the map and one write.

Moments of groups over chunks of pixels, then a sweep whose blocks merge them. Nothing depends on the order of blocks.
"""

from __future__ import annotations

import torch

from varsr_engine.kernels.cuda_backend import (
    MOST_IN_GRID,
    VECTOR_BYTES,
    aligned,
    dtype_code,
    launch,
    why_not_aligned,
)

THREADS = 256  # a block at most: side by side over the channels of a pixel, then over pixels
MOST_CHUNKS = 256  # whose moments every block of the sweep reads
MOST_BLOCKS = 264  # of the sweep: two for each of a large GPU's multiprocessors
PIXELS = 4  # a thread at least


def why_not(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float = 1e-6,
    silu: bool = True,
    out: torch.Tensor | None = None,
) -> str | None:
    for name, t in (("x", x), ("out", out)):
        if t is not None and not t.is_contiguous(memory_format=torch.channels_last):
            return f"{name} is not channels-last"
    for name, t in (("weight", weight), ("bias", bias)):
        if t.dtype != x.dtype:
            return f"{name} is {t.dtype}, x is {x.dtype}"
    C, vector = x.shape[1], VECTOR_BYTES // x.element_size()
    if C % vector != 0 or THREADS * vector < C:
        return f"C is {C}, not a multiple of {vector} up to {THREADS * vector}"
    if x.shape[0] > MOST_IN_GRID:
        return f"B is {x.shape[0]}, more than {MOST_IN_GRID}"
    return why_not_aligned(x=x.permute(0, 2, 3, 1), out=None if out is None else out.permute(0, 2, 3, 1))


def pixels_a_block(pixels: int, most_blocks: int, at_a_time: int) -> int:
    """Pixels of a map that a block walks over: `PIXELS` a thread, or more so that there are no more blocks."""
    return max(-(-pixels // max(1, most_blocks)), PIXELS * at_a_time)


def groupnorm_silu_cuda(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float = 1e-6,
    silu: bool = True,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    (B, C, H, W), G = x.shape, groups
    P, at_a_time = H * W, THREADS // (C * x.element_size() // VECTOR_BYTES)
    out = torch.empty_like(x) if out is None else out
    if out.numel() == 0:
        return out
    chunk = pixels_a_block(P, MOST_CHUNKS, at_a_time)
    block = pixels_a_block(P, MOST_BLOCKS // B, at_a_time)
    moments = torch.empty(B, -(-P // chunk), G, 2, device=x.device, dtype=torch.float32)
    sizes, dtype = (B, P, C, G, chunk), dtype_code(x.dtype)
    launch("group_moments", x.device, x, moments, *sizes, dtype)
    affine = aligned(weight), aligned(bias)
    launch("group_normalise", x.device, x, moments, *affine, out, *sizes, block, eps, silu, dtype)
    return out
