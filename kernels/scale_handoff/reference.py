"""The specification of scale_handoff, in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from varsr_engine.kernels.spec import Cost


class Handoff(NamedTuple):
    """Constants of the way from scale k to scale k+1. Resampling is separable: a matrix on each side of the map."""

    upsample: torch.Tensor  # (p, p_k): bicubic, align_corners=False, A = -0.75, no antialias
    phi_weight: torch.Tensor  # (Z, Z, 3, 3)
    phi_bias: torch.Tensor  # (Z,)
    phi_ratio: float
    downsample: torch.Tensor  # (p_{k+1}, p): adaptive average ("area")
    embed_weight: torch.Tensor  # (C, Z)
    embed_bias: torch.Tensor  # (C,): the word embedding's bias + the next scale's level embedding


def scale_handoff_reference(
    tokens: torch.Tensor, codebook: torch.Tensor, constants: Handoff, f_hat: torch.Tensor, copies: int = 1
) -> torch.Tensor:
    c, side = constants, constants.upsample.shape[1]
    h = codebook[tokens].unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (B, Z, p_k, p_k)
    h = c.upsample @ h @ c.upsample.t()
    f_hat += (1 - c.phi_ratio) * h + c.phi_ratio * F.conv2d(h, c.phi_weight, c.phi_bias, padding=1)
    pooled = c.downsample @ f_hat @ c.downsample.t()
    return F.linear(pooled.flatten(2).transpose(1, 2), c.embed_weight, c.embed_bias).repeat(copies, 1, 1)


def scale_handoff_cost(B: int, side: int, next_side: int, p: int, Z: int, C: int) -> Cost:
    resample = p * side * (side + p) + next_side * p * (p + next_side)
    flops = 2 * B * (Z * resample + 9 * Z * Z * p * p + next_side**2 * Z * C)
    return Cost(flops=flops, bytes=4 * B * (2 * Z * p * p + next_side**2 * C) + 4 * (9 * Z * Z + Z * C))
