"""Scale-aligned rotary positions: every scale is stretched onto one grid (paper section 3.2; spec section 5)."""

from __future__ import annotations

import torch

from varsr_engine.config import ModelConfig


def map_coordinates(side: int, grid: int) -> torch.Tensor:
    """(side^2, 2) float64 (row, column) of a side x side map on the common grid, row-major."""
    axis = torch.arange(side, dtype=torch.float64) / side * grid
    return torch.cartesian_prod(axis, axis).reshape(-1, 2)


def token_coordinates(config: ModelConfig) -> torch.Tensor:
    """(S, 2) float64 coordinates of the whole sequence: prefix, class token (the 1 x 1 scale), scales 1..K-1."""
    sides = (*((config.latent_side,) if config.has_prefix else ()), *config.patch_nums)
    return torch.cat([map_coordinates(side, config.rope_grid) for side in sides])


def rope_tables(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (S, D/2) float32 of pairs (2j, 2j+1): the first D/4 by the row, the others by the column.

    Both axes use the frequencies theta_j = base^(-4j/D), j = 0..D/4-1. Angles are taken in float32, as the published
    weights were trained with.
    """
    quarter = config.head_dim // 4
    frequencies = 1.0 / config.rope_base ** (torch.arange(quarter, dtype=torch.float32) * 4 / config.head_dim)
    angles = token_coordinates(config).float()[:, :, None] * frequencies  # (S, 2, D/4)
    angles = angles.flatten(1)
    return angles.cos(), angles.sin()
