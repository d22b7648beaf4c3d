"""From the low-resolution image to the prefix tokens (paper section 3.2; spec section 2)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from varsr_engine.config import ModelConfig


class ConditionEncoder(nn.Module):
    """3x3 convolutions with SiLU: a stride-1 and a stride-2 one a width, then a projection to the transformer's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = config.cond_channels
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in pairwise(widths):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, stride=2, padding=1))
        self.conv_out = nn.Conv2d(widths[-1], config.embed_dim, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Image (B, 3, 16p, 16p) in [-1, 1] to prefix tokens (B, p^2, C)."""
        in_place = not torch.is_grad_enabled()
        x = F.silu(self.conv_in(image), inplace=in_place)
        for block in self.blocks:
            x = F.silu(block(x), inplace=in_place)
        return rearrange(self.conv_out(x), "b c h w -> b (h w) c")
