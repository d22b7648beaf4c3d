"""The diffusion refiner: restores, token by token, what quantisation lost (paper section 3.4; spec section 8)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from varsr_engine.config import ModelConfig
from varsr_engine.kernels.refiner_block import RefinerBlockWeights, refiner_block
from varsr_engine.kernels.refiner_update import DenoiseStep
from varsr_engine.kernels.refiner_update.reference import denoise

TIME_CHANNELS = 256


@dataclass(frozen=True, slots=True)
class Schedule:
    """The cosine schedule of `train_steps` steps: alpha_bar of each, in float64."""

    alpha_bars: tuple[float, ...]

    @classmethod
    def cosine(cls, train_steps: int) -> Schedule:
        def alpha_bar(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        bars, product = [], 1.0
        for i in range(train_steps):
            product *= 1 - min(1 - alpha_bar((i + 1) / train_steps) / alpha_bar(i / train_steps), 0.999)
            bars.append(product)
        return cls(tuple(bars))

    def timesteps(self, steps: int) -> tuple[int, ...]:
        """`steps` evenly spaced timesteps, ascending, both ends kept."""
        last = len(self.alpha_bars) - 1
        return (last,) if steps == 1 else tuple(round(i * last / (steps - 1)) for i in range(steps))

    def reverse_steps(self, timesteps: Sequence[int]) -> list[DenoiseStep]:
        """Constants of the respaced reverse process, in the order in which it runs: from noise to t = 0."""
        bars = [self.alpha_bars[t] for t in timesteps]
        previous = [1.0, *bars[:-1]]
        betas = [1 - bar / before for bar, before in zip(bars, previous, strict=True)]
        tildes = [b * (1 - before) / (1 - bar) for b, before, bar in zip(betas, previous, bars, strict=True)]
        tildes[0] = tildes[1] if len(tildes) > 1 else betas[0]  # the first is 0, whose logarithm is not finite
        steps = [
            DenoiseStep(
                timestep=t,
                x0_from_x=math.sqrt(1 / bar),
                x0_from_eps=math.sqrt(1 / bar - 1),
                mean_from_x0=beta * math.sqrt(before) / (1 - bar),
                mean_from_x=(1 - before) * math.sqrt(1 - beta) / (1 - bar),
                log_beta=math.log(beta),
                log_beta_tilde=math.log(tilde),
                last=i == 0,
            )
            for i, (t, bar, before, beta, tilde) in enumerate(
                zip(timesteps, bars, previous, betas, tildes, strict=True)
            )
        ]
        return steps[::-1]


def time_embedding(timesteps: torch.Tensor) -> torch.Tensor:
    """Sinusoidal embedding (..., 256) of timesteps: cosines, then sines, of t * 10000^(-j/128)."""
    half = TIME_CHANNELS // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half)
    angles = timesteps.float()[..., None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def linear_of(layers: nn.Sequential, index: int) -> nn.Linear:
    layer = layers[index]
    assert isinstance(layer, nn.Linear)
    return layer


class TimeEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_CHANNELS, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = self.mlp(time_embedding(timesteps).to(linear_of(self.mlp, 0).weight.dtype))
        return embedding


class ResidualBlock(nn.Module):
    """x += gate mlp(LN(x)(1 + scale) + shift); its modulation gives shift, scale, gate, in this order."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        W = config.refiner_width
        self.in_ln = nn.LayerNorm(W, eps=config.norm_eps)
        self.mlp = nn.Sequential(nn.Linear(W, W), nn.SiLU(), nn.Linear(W, W))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(W, 3 * W))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        shift, scale, gate = self.adaLN_modulation(y).to(x.dtype).chunk(3, dim=-1)
        fc1, fc2, norm = linear_of(self.mlp, 0), linear_of(self.mlp, 2), self.in_ln
        weights = RefinerBlockWeights(norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        return refiner_block(x, shift, scale, gate, weights, norm.eps)


class FinalLayer(nn.Module):
    """Noise estimate and variance interpolation; its modulation gives shift, scale."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        W = config.refiner_width
        self.eps = config.norm_eps
        self.linear = nn.Linear(W, 2 * config.latent_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(W, 2 * W))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        out: torch.Tensor = self.linear(F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift)
        return out


class RefinerNetwork(nn.Module):
    """The denoiser: an MLP on rows, one row a token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        W = config.refiner_width
        self.time_embed = TimeEmbed(W)
        self.cond_embed = nn.Linear(config.embed_dim, W)
        self.input_proj = nn.Linear(config.latent_channels, W)
        self.res_blocks = nn.ModuleList(ResidualBlock(config) for _ in range(config.refiner_depth))
        self.final_layer = FinalLayer(config)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        """x (R, Z) at timesteps (R,) given conditions z (R, C) to (R, 2Z): epsilon, then v."""
        y = self.time_embed(timesteps) + self.cond_embed(z)
        h = self.input_proj(x).to(x.dtype)  # a float32 residual stream under autocast
        for block in self.res_blocks:
            h = block(h, y)
        out: torch.Tensor = self.final_layer(h, y)
        return out


class Refiner(nn.Module):
    """The denoiser with its schedule."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.net = RefinerNetwork(config)
        self.schedule = Schedule.cosine(config.refiner_train_steps)

    def sample(self, z: torch.Tensor, guidance: float, noise: torch.Tensor) -> torch.Tensor:
        """Residual (B p^2, Z) for conditions z (2 B p^2, C), conditional half first.

        noise (steps + 1, B p^2, Z): the start, then one for each step; the last is not used.
        """
        config, x = self.config, noise[0]
        Z = config.latent_channels
        steps = self.schedule.reverse_steps(self.schedule.timesteps(config.refiner_steps))
        for step, step_noise in zip(steps, noise[1:], strict=True):
            t = torch.full((z.shape[0],), step.timestep, device=z.device)
            cond, uncond = self.net(torch.cat((x, x)), t, z).chunk(2)
            eps = (1 + guidance) * cond[:, :Z] - guidance * uncond[:, :Z]
            x = denoise(x, eps, cond[:, Z:], step, step_noise)
        return x * config.refiner_residual_scale
