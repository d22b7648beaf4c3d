"""conv3x3 on a GPU: the product by cuDNN, then bias and residual or SiLU in one sweep over its result.

torch would sweep twice: its cuDNN convolution adds the bias by itself, and what follows is an operator of its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from varsr_engine.kernels.conv3x3.reference import Conv3x3Weights

BLOCK = 2048  # elements a program: 16 bytes a thread and load


@triton.jit
def finish_convolution_kernel(
    y_ptr,  # (count,) a channels-last map
    bias_ptr,  # (C,)
    residual_ptr,  # (count,) if RESIDUAL
    out_ptr,  # (count,), which may be y or the residual
    count,
    C: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < count
    y = tl.load(y_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    y += tl.load(bias_ptr + (offs % C).to(tl.int32), mask=mask, other=0.0).to(tl.float32)
    if RESIDUAL:
        y += tl.load(residual_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    if SILU:
        y *= tl.sigmoid(y)
    tl.store(out_ptr + offs, y.to(out_ptr.dtype.element_ty), mask=mask)


def finish(
    y: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None, silu: bool, out: torch.Tensor | None
) -> torch.Tensor:
    """y + bias (+ residual) (and SiLU) of channels-last maps (B, C, H, W), in y unless `out` is given."""
    out = y if out is None else out
    count = y.numel()
    if count > 0:
        finish_convolution_kernel[(triton.cdiv(count, BLOCK),)](
            y,
            bias.contiguous(),
            residual,
            out,
            count,
            C=y.shape[1],
            RESIDUAL=residual is not None,
            SILU=silu,
            BLOCK=BLOCK,
            num_warps=8,
        )
    return out


def why_not(
    x: torch.Tensor,
    weights: Conv3x3Weights,
    residual: torch.Tensor | None = None,
    stride: int = 1,
    silu: bool = False,
    out: torch.Tensor | None = None,
) -> str | None:
    for name, t in (("x", x), ("residual", residual), ("out", out)):
        if t is not None and not t.is_contiguous(memory_format=torch.channels_last):
            return f"{name} is not channels-last"
    return None


def conv3x3_triton(
    x: torch.Tensor,
    weights: Conv3x3Weights,
    residual: torch.Tensor | None = None,
    stride: int = 1,
    silu: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    y = F.conv2d(x, weights.weight, None, stride, padding=1).contiguous(memory_format=torch.channels_last)
    return finish(y, weights.bias, residual, silu, out)
