"""adaln in Triton: a program holds a row in registers, reads it once and writes it once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

WIDEST = 8192  # a row must fit in a program's registers


@triton.jit
def adaln_fwd_kernel(
    x_ptr,  # (B * L, C)
    scale_ptr,  # (B, C), rows stride_b apart
    shift_ptr,
    out_ptr,  # (B * L, C)
    stride_scale,
    stride_shift,
    L,
    eps,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    b = row // L
    offs_c = tl.arange(0, BLOCK_C)
    mask = offs_c < C
    scale = tl.load(scale_ptr + b * stride_scale + offs_c, mask=mask, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + b * stride_shift + offs_c, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + row * C + offs_c, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / C
    centred = tl.where(mask, x - mean, 0.0)  # masked lanes must not enter the variance
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=0) / C + eps)
    y = centred * rstd * (1.0 + scale) + shift
    tl.store(out_ptr + row * C + offs_c, y.to(out_ptr.dtype.element_ty), mask=mask)


def why_not(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float = 1e-6, out: torch.Tensor | None = None
) -> str | None:
    if x.shape[-1] > WIDEST:
        return f"C is {x.shape[-1]}, more than {WIDEST}"
    if out is not None and not out.is_contiguous():
        return "out is not contiguous"
    return None


def adaln_triton(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float = 1e-6, out: torch.Tensor | None = None
) -> torch.Tensor:
    B, L, C = x.shape
    x = x.contiguous()
    scale, shift = (t if t.stride(-1) == 1 else t.contiguous() for t in (scale, shift))  # rows of a larger table
    out = torch.empty_like(x) if out is None else out
    if out.numel() > 0:
        adaln_fwd_kernel[(B * L,)](
            x,
            scale,
            shift,
            out,
            scale.stride(0),
            shift.stride(0),
            L,
            eps,
            C=C,
            BLOCK_C=triton.next_power_of_2(C),
            num_warps=4 if C > 512 else 1,
        )
    return out
