"""Nearest-neighbour upsampling by 2 followed by a 3x3 convolution, without the enlarged input."""

from __future__ import annotations

import torch

from varsr_engine.dispatch import Op
from varsr_engine.kernels.conv3x3 import Conv3x3Weights
from varsr_engine.kernels.spec import check_dtype, check_ndim, check_shape
from varsr_engine.kernels.triton_backend import lazily
from varsr_engine.kernels.upsample_conv import cpu_kernel
from varsr_engine.kernels.upsample_conv.reference import phase_weights as phase_weights
from varsr_engine.kernels.upsample_conv.reference import upsample_conv_reference

_op = Op("upsample_conv")
_op.register("torch", upsample_conv_reference)
_op.register("cpu", cpu_kernel.upsample_conv_cpu, cpu_kernel.why_not)
_op.register("triton", *lazily("varsr_engine.kernels.upsample_conv.triton_kernel", "upsample_conv_triton"))


def upsample_conv(
    x: torch.Tensor,
    phases: torch.Tensor,
    bias: torch.Tensor,
    *,
    weights: Conv3x3Weights | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """conv3x3(nearest_x2(x)) with zero padding 1.

    x (B, C_in, H, W); phases (2, 2, C_out, C_in, 2, 2) = `phase_weights(weight)` of the (C_out, C_in, 3, 3) kernel;
    bias (C_out,); result (B, C_out, 2H, 2W) in x's memory format. `weights` is the unfolded kernel, for a backend
    whose 3x3 convolution saves more than folding does.
    Source: VARSR section 3.1 (the VQ-f16 decoder).
    """
    check_ndim("upsample_conv", "x", x, "(B, C_in, H, W)", 4)
    check_ndim("upsample_conv", "phases", phases, "(2, 2, C_out, C_in, 2, 2)", 6)
    C_in, C_out = x.shape[1], phases.shape[2]
    check_shape("upsample_conv", "phases", phases, "(2, 2, C_out, C_in, 2, 2)", (2, 2, C_out, C_in, 2, 2))
    check_shape("upsample_conv", "bias", bias, "(C_out,)", (C_out,))
    check_dtype("upsample_conv", "phases", phases, x.dtype, "x")
    result: torch.Tensor = _op(x, phases, bias, weights, backend=backend)
    return result
