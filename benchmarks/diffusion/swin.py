"""The Swin UNet that denoises in ResShift and SinSR: diffusers' residual blocks, windows of attention in plain torch.

Sources: Yue et al., "ResShift" (NeurIPS 2023); Liu et al., "Swin Transformer" (ICCV 2021). Written from the papers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from torch import Tensor, nn

GROUPS = 32


def windows_of(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C) -> (B * windows, window^2, C), windows row by row. H and W are multiples of `window`."""
    B, H, W, C = x.shape
    x = x.view(B, H // window, window, W // window, window, C).transpose(2, 3)
    return x.reshape(-1, window * window, C)


def map_of(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of `windows_of`: (B, height, width, C)."""
    C = windows.shape[-1]
    x = windows.view(-1, height // window, width // window, window, window, C).transpose(2, 3)
    return x.reshape(-1, height, width, C)


def relative_index(window: int) -> Tensor:
    """(window^2, window^2) int64: which row of the bias table belongs to a pair of cells of a window."""
    axis = torch.arange(window)
    rows, columns = (part.flatten() for part in torch.meshgrid(axis, axis, indexing="ij"))
    down = rows[:, None] - rows + window - 1
    across = columns[:, None] - columns + window - 1
    return down * (2 * window - 1) + across


def shift_mask(side: int, window: int, shift: int) -> Tensor:
    """(windows, window^2, window^2) bool: which pairs of a rolled map may see each other.

    Rolling a map by `shift` puts rows and columns of opposite borders into one window; they keep apart.
    """
    position = torch.arange(side)
    part = (position >= side - window).long() + (position >= side - shift).long()  # 0 inside, 1 and 2 at the seam
    region = (3 * part[:, None] + part)[None, :, :, None]
    of_window = windows_of(region, window)[..., 0]
    return of_window[:, :, None] == of_window[:, None, :]


class SwinBlock(nn.Module):
    """x + proj(attention(LN(x))), then x + MLP(LN(x)), on (B, side, side, C); attention within windows.

    Attention is softmax(q k^T / sqrt(d) + bias[relative position]) v; with `shift` the map is rolled before and back
    after it. A map no larger than a window is one window, and is not shifted.
    """

    def __init__(self, channels: int, heads: int, side: int, window: int, shift: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        if side % window:
            raise ValueError(f"SwinBlock: side must be a multiple of window = {window}, got {side}")
        self.heads, self.side, self.window = heads, side, window
        self.shift = shift if side > window else 0
        self.attention_norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.bias = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        self.proj = nn.Linear(channels, channels)
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, mlp_ratio * channels), nn.GELU(), nn.Linear(mlp_ratio * channels, channels)
        )
        self.register_buffer("index", relative_index(window), persistent=False)
        if self.shift:
            self.register_buffer("visible", shift_mask(side, window, self.shift), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:3]) != (self.side, self.side):
            expected, got = (self.side, self.side), tuple(x.shape[1:3])
            raise ValueError(
                f"SwinBlock: x must be (B, H, W, C) with (H, W) = {expected}, got {got}; build it for that"
            )
        x = x + self._attend(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))

    def _attend(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), dims=(1, 2))
        windows = windows_of(x, self.window)
        N, n, _ = windows.shape
        q, k, v = self.qkv(windows).view(N, n, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask(B).to(q.dtype))
        x = map_of(self.proj(out.transpose(1, 2).reshape(N, n, C)), self.window, H, W)
        return torch.roll(x, (self.shift, self.shift), dims=(1, 2)) if self.shift else x

    def _mask(self, batch: int) -> Tensor:
        """What is added to the scores: (1 or B * windows, heads, n, n)."""
        bias = self.bias[self.index].permute(2, 0, 1)[None]
        if not self.shift:
            return bias
        bias = bias.masked_fill(~self.visible[:, None], -torch.inf)
        return bias.repeat(batch, 1, 1, 1)


class SwinStage(nn.Module):
    """Two Swin blocks, the second shifted, between 1x1 convolutions to their width and back: (B, C, side, side)."""

    def __init__(self, channels: int, embed: int, heads: int, side: int, window: int) -> None:
        super().__init__()
        self.into = nn.Sequential(nn.Conv2d(channels, embed, 1), nn.GroupNorm(GROUPS, embed))
        self.blocks = nn.Sequential(
            SwinBlock(embed, heads, side, window, 0), SwinBlock(embed, heads, side, window, window // 2)
        )
        self.back = nn.Sequential(nn.Conv2d(embed, channels, 1), nn.GroupNorm(GROUPS, channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.into(x).permute(0, 2, 3, 1))
        return self.back(x.permute(0, 3, 1, 2))


class Rung(nn.ModuleList):
    """Layers one after another, of which the residual blocks also see the time."""

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, time) if isinstance(layer, ResnetBlock2D) else layer(x)
        return x


class SwinUNet(nn.Module):
    """x_0 (B, Z, side, side) from x_t of that shape, t (1,) int64 and the low-resolution picture lq, like x_t.

    Per level `blocks` residual blocks down and one more up, a Swin stage behind the first of each; time as scale and
    shift of the second normalisation.
    """

    def __init__(
        self,
        side: int,
        width: int,
        embed: int,
        heads: int,
        window: int,
        multipliers: Sequence[int] = (1, 2, 2, 4),
        blocks: int = 2,
        latent_channels: int = 3,
    ) -> None:
        super().__init__()
        time = 4 * width

        def residual(channels: int, out: int) -> ResnetBlock2D:
            return ResnetBlock2D(
                in_channels=channels,
                out_channels=out,
                temb_channels=time,
                groups=GROUPS,
                eps=1e-5,
                time_embedding_norm="scale_shift",
            )

        def stage(channels: int, level: int) -> SwinStage:
            return SwinStage(channels, embed, heads, side >> level, window)

        self.frequencies = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embed = TimestepEmbedding(width, time)
        self.conv_in = nn.Conv2d(2 * latent_channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        channels, skips = width, [width]
        for level, multiplier in enumerate(multipliers):
            for i in range(blocks):
                first = residual(channels, multiplier * width)
                channels = multiplier * width
                self.down.append(Rung([first, stage(channels, level)] if i == 0 else [first]))
                skips.append(channels)
            if level + 1 < len(multipliers):
                self.down.append(Rung([Downsample2D(channels, use_conv=True)]))
                skips.append(channels)
        last = len(multipliers) - 1
        self.middle = Rung([residual(channels, channels), stage(channels, last), residual(channels, channels)])
        for level in range(last, -1, -1):
            out = multipliers[level] * width
            for i in range(blocks + 1):
                rung = Rung([residual(channels + skips.pop(), out)])
                channels = out
                if i == 0:
                    rung.append(stage(channels, level))
                if level and i == blocks:
                    rung.append(Upsample2D(channels, use_conv=True))
                self.up.append(rung)
        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, latent_channels, 3, padding=1)
        )

    def forward(self, x: Tensor, t: Tensor, lq: Tensor) -> Tensor:
        time = self.time_embed(self.frequencies(t.expand(len(x))).to(x.dtype))
        x = self.conv_in(torch.cat((x, lq), dim=1))
        skips = [x]
        for rung in self.down:
            x = rung(x, time)
            skips.append(x)
        x = self.middle(x, time)
        for rung in self.up:
            x = rung(torch.cat((x, skips.pop()), dim=1), time)
        return self.out(x)
