"""upsample_conv on the CPU: the Winograd convolution, a quarter of the multiplications; it enlarges as it reads."""

from __future__ import annotations

import torch

from varsr_engine.kernels.conv3x3 import cpu_kernel as conv3x3
from varsr_engine.kernels.conv3x3.reference import Conv3x3Weights


def why_not(
    x: torch.Tensor, phases: torch.Tensor, bias: torch.Tensor, weights: Conv3x3Weights | None = None
) -> str | None:
    if weights is None:
        return "the unfolded kernel was not given"
    if not x.is_contiguous(memory_format=torch.channels_last):
        return "x is not channels-last"
    return conv3x3.why_not(x, weights)


def upsample_conv_cpu(
    x: torch.Tensor, phases: torch.Tensor, bias: torch.Tensor, weights: Conv3x3Weights
) -> torch.Tensor:
    return conv3x3.conv3x3_cpu(x, weights, doubling=1)
