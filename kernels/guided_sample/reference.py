"""The specification of guided_sample, in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from varsr_engine.kernels.panels import as_matrix
from varsr_engine.kernels.philox.reference import gumbel
from varsr_engine.kernels.spec import Cost


class Sampling(NamedTuple):
    """How to draw tokens, one value an image, as data: a batch may mix requests. Left out where all take the argmax."""

    top_k: torch.Tensor  # (B,) int64, 0 = no limit
    top_p: torch.Tensor  # (B,) float32
    temperature: torch.Tensor  # (B,) float32
    seeds: torch.Tensor  # (B,) int64
    positions: torch.Tensor  # (B, L), or (L,) for all images, int64: the tokens' places on the scale's grid
    step: int
    stream: int


def guide(cond: torch.Tensor, uncond: torch.Tensor | None, ratio: torch.Tensor) -> torch.Tensor:
    """(1 + t) cond - t uncond, one t an image."""
    if uncond is None:
        return cond
    t = ratio.view(-1, *(1,) * (cond.ndim - 1))
    return torch.addcmul((1 + t) * cond, uncond, -t)


def filter_logits(
    logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, temperature: torch.Tensor
) -> torch.Tensor:
    """logits / temperature with the tokens outside top-k, then outside top-p, at -inf.

    Ties with the k-th largest stay. Top-p keeps the smallest set of most probable tokens whose mass reaches top_p:
    in ascending order, those with a cumulative probability of at most 1 - top_p go, and the best always stays.
    """
    V = logits.shape[-1]
    logits = logits / temperature[:, None, None]
    ascending, order = logits.sort(dim=-1, stable=True)
    kept = torch.where(top_k > 0, top_k.clamp(max=V), V)
    kth_largest = ascending.gather(-1, (V - kept)[:, None, None].expand(*logits.shape[:2], 1))
    ascending = ascending.masked_fill(ascending < kth_largest, -torch.inf)
    drop = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p[:, None, None]
    drop[..., -1] = False
    filtered = ascending.masked_fill(drop & (top_p < 1)[:, None, None], -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, filtered)


def guided_sample_reference(
    cond: torch.Tensor,
    uncond: torch.Tensor | None,
    ratio: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    sampling: Sampling | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = guide(cond, uncond, ratio).to(weight.dtype)
    logits = F.linear(hidden, as_matrix(weight), bias)
    return draw(logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits, sampling)


def draw(logits: torch.Tensor, sampling: Sampling | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of guided logits (B, L, V), and these."""
    if sampling is None:
        return logits.argmax(dim=-1), logits
    s = sampling
    noise = gumbel(s.seeds, s.positions, logits.shape[-1], s.step, s.stream)
    filtered = filter_logits(logits, s.top_k, s.top_p, s.temperature)
    drawn = (filtered + noise).argmax(dim=-1)
    # Ties with the largest survive top_k = 1: such an image takes the first of them, whatever its neighbours draw.
    return torch.where(s.top_k[:, None] == 1, logits.argmax(dim=-1), drawn), logits


def guided_sample_cost(B: int, L: int, C: int, V: int, guided: bool, element: int = 4) -> Cost:
    return Cost(flops=2 * B * L * C * V, bytes=4 * B * L * C * (1 + guided) + element * C * V + 8 * B * L)
