"""conv3x3 on the CPU by Winograd's algorithm (csrc/cpu/conv3x3.cpp), channels-last."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from varsr_engine.kernels import cpu_library as cpu
from varsr_engine.kernels.conv3x3.reference import Conv3x3Weights

# Below this width the transforms cost more than the saved multiplications (measured on two Zen 3 cores).
MIN_CHANNELS = 16
# The coarser algorithm for wide inputs loses accuracy beside torch's where the sums are many and the pixels few.
WIDE, MIN_WIDE_INPUTS = 160, 20480
# Kernels of up to this many weights are transformed once and kept. Larger ones would take four times their memory for
# good: they are transformed at each call, which pays from this many pixels on.
KEEP_BELOW, MIN_PIXELS = 1 << 18, 64 * 64


def supports(C_in: int, C_out: int) -> bool:
    return min(C_in, C_out) >= MIN_CHANNELS and C_in % cpu.LANES == 0 and C_out % cpu.LANES == 0


def prepare(weight: torch.Tensor) -> torch.Tensor | None:
    """The transformed kernel, if this machine wants one and it is worth keeping."""
    C_out, C_in = weight.shape[:2]
    if cpu.why_not(weight) is not None or not supports(C_in, C_out):
        return None
    return transform(weight) if weight.numel() <= KEEP_BELOW else None


def transform(weight: torch.Tensor) -> torch.Tensor:
    """The kernel (C_out, C_in, 3, 3) in the panels of Winograd's domain."""
    C_out, C_in = weight.shape[:2]
    transformed = torch.empty(cpu.call("conv3x3_transformed_size", C_out, C_in))
    cpu.call("conv3x3_transform", weight.contiguous(), transformed, C_out, C_in)
    return transformed


def why_not(
    x: torch.Tensor,
    weights: Conv3x3Weights,
    residual: torch.Tensor | None = None,
    stride: int = 1,
    silu: bool = False,
    out: torch.Tensor | None = None,
) -> str | None:
    if stride != 1:
        return f"the stride is {stride}, not 1"
    if out is not None and not out.is_contiguous(memory_format=torch.channels_last):
        return "out is not channels-last"
    C_out, C_in = weights.weight.shape[:2]
    if not supports(C_in, C_out):
        return f"{C_in} to {C_out} channels: it takes multiples of {cpu.LANES}, at least {MIN_CHANNELS}"
    pixels = x.shape[2] * x.shape[3]
    if C_in >= WIDE and pixels * C_in <= MIN_WIDE_INPUTS:
        return f"{pixels} pixels are too few for {C_in} channels: torch's convolution is more exact"
    if weights.transformed is None and pixels < MIN_PIXELS:
        return f"{pixels} pixels are too few to transform {C_in} x {C_out} kernels for"
    return cpu.why_not(x, *weights[:2], *([] if residual is None else [residual]))


def conv3x3_cpu(
    x: torch.Tensor,
    weights: Conv3x3Weights,
    residual: torch.Tensor | None = None,
    stride: int = 1,
    silu: bool = False,
    out: torch.Tensor | None = None,
    *,
    doubling: int = 0,
) -> torch.Tensor:
    """With doubling = 1 of x enlarged twice to its nearest neighbours, which are read from x itself."""
    B, C_in, H, W = x.shape
    H, W = H << doubling, W << doubling
    C_out, layout = weights.bias.shape[0], torch.channels_last
    x = x.contiguous(memory_format=layout)
    residual = None if residual is None else residual.contiguous(memory_format=layout)
    out = torch.empty(B, C_out, H, W, memory_format=layout) if out is None else out
    if out.numel() == 0:
        return out
    bias = weights.bias.contiguous()
    transformed = transform(weights.weight) if weights.transformed is None else weights.transformed
    cpu.call("conv3x3", x, transformed, bias, residual, out, B, H, W, C_in, C_out, doubling)
    return F.silu(out, inplace=True) if silu else out
