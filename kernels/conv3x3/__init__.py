"""The networks' convolution: 3x3, zero padding 1, with the residual addition or the SiLU that follows it."""

from __future__ import annotations

import torch

from varsr_engine.dispatch import Op
from varsr_engine.kernels.conv3x3 import cpu_kernel
from varsr_engine.kernels.conv3x3.reference import Conv3x3Weights as Conv3x3Weights
from varsr_engine.kernels.conv3x3.reference import conv3x3_reference
from varsr_engine.kernels.spec import check_dtype, check_ndim, check_shape
from varsr_engine.kernels.triton_backend import lazily

_op = Op("conv3x3")
_op.register("torch", conv3x3_reference)
_op.register("cpu", cpu_kernel.conv3x3_cpu, cpu_kernel.why_not)
_op.register("triton", *lazily("varsr_engine.kernels.conv3x3.triton_kernel", "conv3x3_triton"))


def prepare_conv3x3(weight: torch.Tensor, bias: torch.Tensor) -> Conv3x3Weights:
    """The weights of a convolution in every form that a backend of this machine wants. weight (C_out, C_in, 3, 3)."""
    if weight.device.type != "cpu":  # cuDNN's channels-last kernels would lay the weight out anew at each call
        weight = weight.contiguous(memory_format=torch.channels_last)
    return Conv3x3Weights(weight, bias, cpu_kernel.prepare(weight))


def conv3x3(
    x: torch.Tensor,
    weights: Conv3x3Weights,
    residual: torch.Tensor | None = None,
    *,
    stride: int = 1,
    silu: bool = False,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """y = x * w + b, or y = x * w + b + residual; y / (1 + exp(-y)) if silu.

    x (B, C_in, H, W), channels-last in the engine; residual and result (B, C_out, ceil(H / stride), ceil(W / stride))
    in x's dtype and layout. The result is written to `out` if given, which may be the residual but not x.
    Source: VARSR section 3.1 (the VQ-f16 decoder) and 3.2 (the condition encoder).
    """
    op = "conv3x3"
    check_ndim(op, "x", x, "(B, C_in, H, W)", 4)
    B, C_in, H, W = x.shape
    if stride < 1:
        raise ValueError(f"conv3x3: stride must be positive, got {stride}")
    C_out, H, W = weights.weight.shape[0], -(-H // stride), -(-W // stride)
    check_shape(op, "weight", weights.weight, "(C_out, C_in, 3, 3)", (C_out, C_in, 3, 3))
    check_shape(op, "bias", weights.bias, "(C_out,)", (C_out,))
    check_dtype(op, "weight", weights.weight, x.dtype, "x")
    if residual is not None:
        check_shape(op, "residual", residual, "(B, C_out, H', W')", (B, C_out, H, W))
        check_dtype(op, "residual", residual, x.dtype, "x")
    if out is not None:
        check_shape(op, "out", out, "(B, C_out, H', W')", (B, C_out, H, W))
        check_dtype(op, "out", out, x.dtype, "x")
    result: torch.Tensor = _op(x, weights, residual, stride, silu, out, backend=backend)
    return result
