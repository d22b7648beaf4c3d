"""upsample_conv on the CPU: the enlarged map through the Winograd convolution, a quarter of the multiplications."""

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
    B, C, H, W = x.shape
    enlarged = torch.empty(B, H, 2, W, 2, C)
    enlarged.copy_(x.permute(0, 2, 3, 1)[:, :, None, :, None].expand_as(enlarged))
    return conv3x3.conv3x3_cpu(enlarged.view(B, 2 * H, 2 * W, C).permute(0, 3, 1, 2), weights)
