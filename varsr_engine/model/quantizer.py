"""Multi-scale residual quantisation: image latents to tokens and back (paper section 3.1; spec sections 7 and 11)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from varsr_engine.config import ModelConfig

# (step, vectors (B, n, Z), their nearest entries (B, n)) to the tokens that f_hat is built from instead.
Feed = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]


class SharedPhi(nn.Module):
    """The residual convolutions, shared between neighbouring scales."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        Z = config.latent_channels
        self.qresi_ls = nn.ModuleList(nn.Conv2d(Z, Z, 3, padding=1) for _ in range(config.num_phi))


class Quantizer(nn.Module):
    """A codebook, and the map f_hat that its entries build up scale by scale."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.latent_channels)
        self.quant_resi = SharedPhi(config)

    def contribution(self, tokens: torch.Tensor, step: int) -> torch.Tensor:
        """What the tokens (B, p_k^2) of a scale add to f_hat: (B, Z, p, p)."""
        config, side = self.config, self.config.patch_nums[step]
        h = rearrange(self.embedding(tokens), "b (h w) z -> b z h w", h=side)
        if step == config.num_scales - 1:  # the refiner models what is left, so nothing reshapes the last scale
            return h
        h = F.interpolate(h, size=(config.latent_side,) * 2, mode="bicubic")
        phi = self.quant_resi.qresi_ls[config.phi_index(step)]
        return (1 - config.phi_ratio) * h + config.phi_ratio * phi(h)

    def next_map(self, f_hat: torch.Tensor, step: int) -> torch.Tensor:
        """The map that the inputs of step + 1 are made of: (B, p_{k+1}^2, Z)."""
        pooled = F.interpolate(f_hat, size=(self.config.patch_nums[step + 1],) * 2, mode="area")
        return rearrange(pooled, "b z h w -> b (h w) z")

    def nearest(self, vectors: torch.Tensor) -> torch.Tensor:
        """Index of the nearest codebook entry (Euclidean) for vectors (..., Z)."""
        codebook = self.embedding.weight
        distance = codebook.square().sum(dim=1) - 2 * vectors @ codebook.t()  # less |vector|^2, the same for all
        return distance.argmin(dim=-1)

    def encode(
        self, latent: torch.Tensor, feed: Feed | None = None
    ) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """Quantise a latent (B, Z, p, p): tokens of each scale, transformer inputs, and the last scale's target.

        Returns tokens, K tensors (B, p_k^2); inputs (B, sum of p_k^2 for k >= 1, Z); and the residual (B, p^2, Z) that
        is left before the last scale. `feed` puts other tokens than the nearest into f_hat: the tokens of the scales
        that follow then correct them.
        """
        residual, f_hat = latent, torch.zeros_like(latent)
        tokens, inputs = [], []
        for step, side in enumerate(self.config.patch_nums):
            last = step == self.config.num_scales - 1
            pooled = residual if last else F.interpolate(residual, size=(side, side), mode="area")
            last_residual = rearrange(residual, "b z h w -> b (h w) z")
            vectors = rearrange(pooled, "b z h w -> b (h w) z")
            tokens.append(self.nearest(vectors))
            if not last:
                h = self.contribution(tokens[-1] if feed is None else feed(step, vectors, tokens[-1]), step)
                f_hat, residual = f_hat + h, residual - h
                inputs.append(self.next_map(f_hat, step))
        return tokens, torch.cat(inputs, dim=1), last_residual
