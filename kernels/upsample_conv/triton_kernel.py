"""upsample_conv on a GPU: the four phases' products by cuDNN, then a sweep that interleaves them and adds the bias."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from varsr_engine.kernels.conv3x3.reference import Conv3x3Weights

STEP = 2048  # elements a program and phase


@triton.jit(do_not_specialize=["H", "W"])
def interleave_phases_kernel(
    even_even_ptr,  # (B, H + 1, W + 1, C) each: phase (row, column), with one row and column too many
    even_odd_ptr,
    odd_even_ptr,
    odd_odd_ptr,
    bias_ptr,  # (C,)
    out_ptr,  # (B, 2H, 2W, C)
    H,
    W,
    C: tl.constexpr,
    BLOCK_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A program writes BLOCK_W pixels of one output row; the row decides which phases it reads."""
    row = tl.program_id(1)
    b, row = (row // (2 * H)).to(tl.int64), row % (2 * H)
    py, y = row % 2, row // 2
    x = tl.program_id(0) * BLOCK_W + tl.arange(0, BLOCK_W)
    channel = tl.arange(0, BLOCK_C)
    mask = (x < W)[:, None] & (channel < C)[None, :]
    bias = tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    even_ptr, odd_ptr = even_even_ptr, even_odd_ptr
    if py == 1:
        even_ptr, odd_ptr = odd_even_ptr, odd_odd_ptr
    source = (b * (H + 1) + y + py) * (W + 1) * C
    target = (b * 2 * H + row) * 2 * W * C
    even = tl.load(even_ptr + source + x[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    odd = tl.load(odd_ptr + source + (x + 1)[:, None] * C + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    even, odd = even + bias[None, :], odd + bias[None, :]
    out = out_ptr + target + (2 * x)[:, None] * C + channel[None, :]
    tl.store(out, even.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(out + C, odd.to(out_ptr.dtype.element_ty), mask=mask)


def why_not(
    x: torch.Tensor, phases: torch.Tensor, bias: torch.Tensor, weights: Conv3x3Weights | None = None
) -> str | None:
    return None if x.is_contiguous(memory_format=torch.channels_last) else "x is not channels-last"


def upsample_conv_triton(
    x: torch.Tensor, phases: torch.Tensor, bias: torch.Tensor, weights: Conv3x3Weights | None = None
) -> torch.Tensor:
    (B, _, H, W), C = x.shape, phases.shape[2]
    out = torch.empty(B, C, 2 * H, 2 * W, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if out.numel() == 0:
        return out
    parts = [
        F.conv2d(x, phases[py, px], padding=1).contiguous(memory_format=torch.channels_last)
        for py in (0, 1)
        for px in (0, 1)
    ]
    block_c = triton.next_power_of_2(C)
    block_w = max(1, min(triton.next_power_of_2(W), STEP // block_c))
    interleave_phases_kernel[(triton.cdiv(W, block_w), B * 2 * H)](
        *parts, bias.contiguous(), out, H, W, C=C, BLOCK_W=block_w, BLOCK_C=block_c, num_warps=4
    )
    return out
