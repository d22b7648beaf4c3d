"""RRDBNet, the generator of ESRGAN and Real-ESRGAN x4plus: the cheap anchor that any diffusion model is held against.

Source: Wang et al., "ESRGAN" (ECCV Workshops 2018). Written from the paper.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESIDUAL = 0.2  # what a branch counts for
CONVOLUTIONS = 5  # of a dense block


def activation(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


class DenseBlock(nn.Module):
    """x + 0.2 c5([x, c1, .., c4]), where c_i sees x and all of c_1 .. c_{i-1}: (B, C, H, W) -> the same."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        outs = [growth] * (CONVOLUTIONS - 1) + [width]
        self.convs = nn.ModuleList(nn.Conv2d(width + i * growth, out, 3, padding=1) for i, out in enumerate(outs))

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in self.convs[:-1]:
            seen = torch.cat((seen, activation(conv(seen))), dim=1)
        return x + RESIDUAL * self.convs[-1](seen)


class RRDB(nn.Module):
    """x + 0.2 of three dense blocks in a row."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(width, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL * self.blocks(x)


class RRDBNet(nn.Module):
    """Pictures (B, 3, h, w) to (B, 3, 4h, 4w), both in [0, 1]."""

    def __init__(self, width: int, growth: int, blocks: int) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(RRDB(width, growth) for _ in range(blocks)), nn.Conv2d(width, width, 3, padding=1))
        self.ups = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.conv_hr = nn.Conv2d(width, width, 3, padding=1)
        self.conv_last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_first(x)
        x = x + self.body(x)
        for up in self.ups:
            x = activation(up(F.interpolate(x, scale_factor=2, mode="nearest")))
        return self.conv_last(activation(self.conv_hr(x)))


def own_name(published: str, blocks: int) -> str:
    """A tensor's name here, by its name in the weights that Real-ESRGAN publishes."""
    body = re.fullmatch(r"body\.(\d+)\.rdb(\d)\.conv(\d)\.(\w+)", published)
    if body is not None:
        block, dense, conv = int(body[1]), int(body[2]) - 1, int(body[3]) - 1
        return f"body.{block}.blocks.{dense}.convs.{conv}.{body[4]}"
    up = re.fullmatch(r"conv_up(\d)\.(\w+)", published)
    if up is not None:
        return f"ups.{int(up[1]) - 1}.{up[2]}"
    return published.replace("conv_body", f"body.{blocks}")
