"""adaln in Triton: a program holds a row in registers, reads it once and writes it once."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from varsr_engine.dispatch import tensors_in
from varsr_engine.kernels.quantized import QuantizedRows, Rows, values_of
from varsr_engine.kernels.triton_product import quantize

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
    out_scale_ptr=None,  # (B * L,) float32 where out is e4m3
    QUANTIZED: tl.constexpr = False,
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
    if QUANTIZED:
        values, row_scale = quantize(y[None, :])
        y = tl.reshape(values, (BLOCK_C,))
        tl.store(out_scale_ptr + row + tl.arange(0, 1), row_scale)
    else:
        y = y.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * C + offs_c, y, mask=mask)


def why_not(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float = 1e-6, out: Rows | None = None
) -> str | None:
    if x.shape[-1] > WIDEST:
        return f"C is {x.shape[-1]}, more than {WIDEST}"
    if out is not None and not all(t.is_contiguous() for t in tensors_in((out,))):
        return "out is not contiguous"
    return None


def adaln_triton(
    x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, eps: float = 1e-6, out: Rows | None = None
) -> Rows:
    B, L, C = x.shape
    x = x.contiguous()
    scale, shift = (t if t.stride(-1) == 1 else t.contiguous() for t in (scale, shift))  # rows of a larger table
    out = torch.empty_like(x) if out is None else out
    quantization: dict[str, Any] = {}
    if isinstance(out, QuantizedRows):
        quantization = {"out_scale_ptr": out.scale, "QUANTIZED": True}
    if values_of(out).numel() > 0:
        adaln_fwd_kernel[(B * L,)](
            x,
            scale,
            shift,
            values_of(out),
            scale.stride(0),
            shift.stride(0),
            L,
            eps,
            C=C,
            BLOCK_C=triton.next_power_of_2(C),
            num_warps=4 if C > 512 else 1,
            **quantization,
        )
    return out
