"""The VQ-f16 autoencoder: image to latent and back (paper section 3.1; spec section 9)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from varsr_engine.config import ModelConfig
from varsr_engine.kernels.groupnorm_silu import groupnorm_silu
from varsr_engine.model.quantizer import Quantizer


class Norm(nn.GroupNorm):
    """GroupNorm and, unless switched off, SiLU."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__(config.vae_norm_groups, channels, eps=config.norm_eps)

    def forward(self, x: torch.Tensor, silu: bool = True) -> torch.Tensor:
        return groupnorm_silu(x, self.weight, self.bias, self.num_groups, self.eps, silu=silu)


class ResnetBlock(nn.Module):
    def __init__(self, config: ModelConfig, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1 = Norm(config, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = Norm(config, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h))
        out: torch.Tensor = h.add_(self.nin_shortcut(x))  # in place: nothing saved the convolution's output
        return out


class AttentionBlock(nn.Module):
    """Single-head self-attention over the pixels of the lowest resolution."""

    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        self.norm = Norm(config, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        C, H = x.shape[1:3]
        tokens = rearrange(self.norm(x, silu=False), "b c h w -> b (h w) c")
        q, k, v = F.linear(tokens, self.qkv.weight[:, :, 0, 0], self.qkv.bias).chunk(3, dim=-1)
        weights = (q @ k.mT * C**-0.5).softmax(dim=-1)
        attended = F.linear(weights @ v, self.proj_out.weight[:, :, 0, 0], self.proj_out.bias)
        return x + rearrange(attended, "b (h w) c -> b c h w", h=H)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return out


class Middle(nn.Module):
    def __init__(self, config: ModelConfig, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(config, channels, channels)
        self.attn_1 = AttentionBlock(config, channels)
        self.block_2 = ResnetBlock(config, channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Level(nn.Module):
    """Residual blocks of one resolution, with attention after each at the lowest; most change resolution after."""

    downsample: Downsample
    upsample: Upsample

    def __init__(self, config: ModelConfig, c_in: int, c_out: int, blocks: int, attention: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(config, c_in if i == 0 else c_out, c_out) for i in range(blocks))
        self.attn = nn.ModuleList(AttentionBlock(config, c_out) for _ in range(blocks if attention else 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn) > 0:
                x = self.attn[i](x)
        return x


class Encoder(nn.Module):
    """Image (B, 3, 16p, 16p) to features (B, Z, p, p). Used in training only."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [config.vae_channels * m for m in config.vae_multipliers]
        self.conv_in = nn.Conv2d(3, config.vae_channels, 3, padding=1)
        self.down = nn.ModuleList()
        c_in, last = config.vae_channels, len(widths) - 1
        for i, c_out in enumerate(widths):
            level = Level(config, c_in, c_out, config.vae_res_blocks, attention=i == last)
            if i != last:
                level.downsample = Downsample(c_out)
            self.down.append(level)
            c_in = c_out
        self.mid = Middle(config, c_in)
        self.norm_out: nn.Module = Norm(config, c_in)
        self.conv_out = nn.Conv2d(c_in, config.latent_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            assert isinstance(level, Level)
            x = level(x)
            if i != len(self.down) - 1:
                x = level.downsample(x)
        out: torch.Tensor = self.conv_out(self.norm_out(self.mid(x)))
        return out


class Decoder(nn.Module):
    """Features (B, Z, p, p) to an image (B, 3, 16p, 16p)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = [config.vae_channels * m for m in config.vae_multipliers]
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(config, widths[-1])
        levels: list[nn.Module] = []
        c_in, last = widths[-1], len(widths) - 1
        for i in reversed(range(len(widths))):
            level = Level(config, c_in, widths[i], config.vae_res_blocks + 1, attention=i == last)
            if i != 0:
                level.upsample = Upsample(widths[i])
            levels.insert(0, level)
            c_in = widths[i]
        self.up = nn.ModuleList(levels)  # numbered from the highest resolution, as in the published checkpoint
        self.norm_out: nn.Module = Norm(config, c_in)
        self.conv_out = nn.Conv2d(c_in, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mid(self.conv_in(x))
        for i in reversed(range(len(self.up))):
            level = self.up[i]
            assert isinstance(level, Level)
            x = level(x)
            if i != 0:
                x = level.upsample(x)
        out: torch.Tensor = self.conv_out(self.norm_out(x))
        return out


class Autoencoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        Z = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config)
        self.quant_conv = nn.Conv2d(Z, Z, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(Z, Z, 3, padding=1)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Image (B, 3, 16p, 16p) in [-1, 1] to the continuous latent (B, Z, p, p)."""
        latent: torch.Tensor = self.quant_conv(self.encoder(image))
        return latent

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Latent (B, Z, p, p) to an image (B, 3, 16p, 16p) in [0, 1]."""
        decoded: torch.Tensor = self.decoder(self.post_quant_conv(latent))
        return decoded.clamp(-1, 1) * 0.5 + 0.5
