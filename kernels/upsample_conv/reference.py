"""The specification of upsample_conv, in plain torch: the 3x3 convolution as one 2x2 convolution an output phase.

Every output pixel sees only 2x2 distinct input pixels, so taps that fall on the same one are added up beforehand:
4/9 of the multiplications, and no enlarged input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from varsr_engine.kernels.conv3x3.reference import Conv3x3Weights
from varsr_engine.kernels.spec import Cost

# FOLD[phase, i, tap]: whether a row's tap falls on the i-th of the two low-resolution rows that an output row of that
# phase (0 even, 1 odd) sees. Columns alike.
FOLD = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))


def phase_weights(weight: torch.Tensor) -> torch.Tensor:
    """(C_out, C_in, 3, 3) -> (2, 2, C_out, C_in, 2, 2): the kernel that each output phase (row, column) applies."""
    fold = torch.tensor(FOLD, dtype=weight.dtype, device=weight.device).flatten(0, 1)  # (4, 3): phase and row
    folded = torch.kron(fold, fold) @ weight.flatten(2).permute(2, 0, 1).flatten(1)  # (16, C_out * C_in)
    phases = folded.view(2, 2, 2, 2, *weight.shape[:2]).permute(0, 2, 4, 5, 1, 3)
    if weight.device.type == "cpu":
        return phases.contiguous()
    # Each phase channels-last: cuDNN would lay it out anew at each call.
    return phases.permute(0, 1, 2, 4, 5, 3).contiguous().permute(0, 1, 2, 5, 3, 4)


def upsample_conv_reference(
    x: torch.Tensor, phases: torch.Tensor, bias: torch.Tensor, weights: Conv3x3Weights | None = None
) -> torch.Tensor:
    B, _, H, W = x.shape
    layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    out = torch.empty(B, phases.shape[2], 2 * H, 2 * W, dtype=x.dtype, device=x.device, memory_format=layout)
    for py in (0, 1):
        for px in (0, 1):
            full = F.conv2d(x, phases[py, px], bias, padding=1)  # (H + 1, W + 1): one row and column too many
            out[:, :, py::2, px::2] = full[:, :, py : py + H, px : px + W]
    return out


def upsample_conv_cost(B: int, C_in: int, C_out: int, H: int, W: int, element: int = 4) -> Cost:
    """Of the phases: four 2x2 convolutions at the low resolution H x W."""
    return Cost(
        flops=32 * B * C_in * C_out * H * W, bytes=element * (B * H * W * (C_in + 4 * C_out) + 16 * C_in * C_out)
    )
