"""The specification of conv3x3, in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from varsr_engine.kernels.spec import Cost


class Conv3x3Weights(NamedTuple):
    """A 3x3 kernel, and the same in the form that a backend multiplies with, where `prepare_conv3x3` made one."""

    weight: torch.Tensor  # (C_out, C_in, 3, 3)
    bias: torch.Tensor  # (C_out,)
    transformed: torch.Tensor | None = None  # of the CPU kernel: see csrc/cpu/conv3x3.cpp


def conv3x3_reference(
    x: torch.Tensor,
    weights: Conv3x3Weights,
    residual: torch.Tensor | None = None,
    stride: int = 1,
    silu: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    y = F.conv2d(x, weights.weight, weights.bias, stride, padding=1)
    if residual is not None:
        y = y + residual if y.requires_grad else y.add_(residual)
    if silu:
        y = F.silu(y, inplace=not y.requires_grad)
    return y if out is None else out.copy_(y)


def conv3x3_cost(B: int, C_in: int, C_out: int, H: int, W: int, element: int = 4) -> Cost:
    """Of direct summation: an algorithm that multiplies less, such as Winograd's, shows as a higher rate."""
    moved = B * H * W * (C_in + C_out) + 9 * C_in * C_out
    return Cost(flops=18 * B * C_in * C_out * H * W, bytes=element * moved)
