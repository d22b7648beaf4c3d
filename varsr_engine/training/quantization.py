"""Learning a codebook: residual quantisation with a straight-through gradient, and keeping every entry in use."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from varsr_engine.model.quantizer import Quantizer


class Quantised(NamedTuple):
    latent: torch.Tensor  # (B, Z, p, p): the quantised latent in value, the continuous one in gradient
    loss: torch.Tensor  # codebook and commitment
    tokens: list[torch.Tensor]  # K x (B, p_k^2)
    residuals: torch.Tensor  # (R, Z) detached: what was looked up, a sample of every scale


def quantise(quantizer: Quantizer, latent: torch.Tensor, commitment: float) -> Quantised:
    """All scales of a latent (B, Z, p, p), as `Quantizer.encode` does it, with gradients.

    loss = mean over scales of |f_hat_k - sg(f)|^2 + commitment |sg(f_hat_k) - f|^2, where f_hat_k is what the first k
    scales restore. Source: VARSR section 3.1; VAR (arXiv 2404.02905), algorithm 1.
    """
    config = quantizer.config
    target = latent.detach()
    residual, f_hat = target, torch.zeros_like(target)
    loss = latent.new_zeros(())
    tokens, looked_up = [], []
    for step, side in enumerate(config.patch_nums):
        last = step == config.num_scales - 1
        pooled = residual if last else F.interpolate(residual, size=(side, side), mode="area")
        vectors = rearrange(pooled, "b z h w -> b (h w) z")
        with torch.no_grad():
            tokens.append(quantizer.nearest(vectors))
        looked_up.append(vectors.flatten(0, 1)[:: max(1, vectors.shape[1] // 16)])
        f_hat = f_hat + quantizer.contribution(tokens[-1], step)
        residual = target - f_hat.detach()
        loss = loss + F.mse_loss(f_hat, target) + commitment * F.mse_loss(f_hat.detach(), latent)
    straight_through = latent + (f_hat - latent).detach()
    return Quantised(straight_through, loss / config.num_scales, tokens, torch.cat(looked_up))


class CodebookUse(nn.Module):
    """How often each entry is chosen, as a moving average, and the revival of those that are not.

    Every scale counts alike: the first has one token an image and is worth as much as the last with p^2.
    """

    hits: torch.Tensor

    def __init__(self, vocab_size: int, decay: float = 0.95) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("hits", torch.ones(vocab_size))

    @torch.no_grad()
    def count(self, tokens: list[torch.Tensor]) -> None:
        size = self.hits.shape[0]
        shares = [torch.bincount(t.flatten(), minlength=size).float() / t.numel() for t in tokens]
        self.hits.lerp_(torch.stack(shares).mean(dim=0) * size, 1 - self.decay)

    @torch.no_grad()
    def revive(self, codebook: torch.Tensor, residuals: torch.Tensor, below: float) -> int:
        """Put a recently looked-up vector in the place of every entry used less than `below` times the mean."""
        dead = (self.hits < below).nonzero().flatten()
        if dead.numel() > 0:
            chosen = torch.randint(residuals.shape[0], (dead.numel(),), device=residuals.device)
            codebook[dead] = residuals[chosen].to(codebook.dtype)
            self.hits[dead] = 1.0
        return dead.numel()


def usage(tokens: list[torch.Tensor], vocab_size: int) -> list[float]:
    """For each scale, the share of the codebook that its tokens used."""
    return [t.unique().numel() / vocab_size for t in tokens]
