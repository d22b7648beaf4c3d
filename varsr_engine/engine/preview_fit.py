"""Fitting the map of latent previews to a model's own decoder, on pictures made for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from varsr_engine.engine.preview import PreviewMap
from varsr_engine.imaging import resize_rgb, to_network_input
from varsr_engine.training.synthetic import SMALLEST_SIDE, dead_leaves

if TYPE_CHECKING:
    from varsr_engine.engine.tensors import TensorEngine

PICTURES = 8  # of a map that stays with the weights
PICTURES_AT_FIRST_USE = 2
SCALE = 4  # of the upscaling that the pictures stand for


class PreviewFit(NamedTuple):
    map: PreviewMap
    r_squared: float  # share of the variance of the decoded cells' colours that the map explains


def fit_preview_map(engine: TensorEngine, pictures: int = PICTURES) -> PreviewFit:
    """Least squares from the cells of latents to the mean colours, in [0, 1], of the pixels decoded from them.

    The latents are those of every scale, and the refined one, of synthetic pictures that the engine upscales: one tile
    and a decode a scale for each. The same engine gives the same map.
    """
    side, f = engine.model_config.image_side, engine.model_config.downsample
    cells, colours = [], []
    for seed in range(pictures):
        small = dead_leaves(max(SMALLEST_SIDE, side // SCALE), seed).astype(np.float32) / np.float32(255)
        trace = engine.generate(to_network_input(resize_rgb(small, (side, side))), trace=True).trace
        assert trace is not None and trace.latent is not None
        for latent in (*trace.f_hats, trace.latent):
            cells.append(rows_of(latent))
            colours.append(rows_of(F.avg_pool2d(engine.decode(latent), f)))
    return least_squares(torch.cat(cells), torch.cat(colours))


def rows_of(maps: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B * H * W, C) float64, on the CPU."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2).cpu().double()


def least_squares(cells: torch.Tensor, colours: torch.Tensor) -> PreviewFit:
    """The map for which weight x cell + bias is nearest to the colours; cells (N, Z), colours (N, 3)."""
    inputs = torch.cat((cells, torch.ones_like(cells[:, :1])), dim=1)
    solution = torch.linalg.lstsq(inputs, colours, driver="gelsd").solution  # whatever the rank
    left = (inputs @ solution - colours).square().sum() / (colours - colours.mean(0)).square().sum().clamp_min(1e-30)
    weight, bias = solution[:-1].t().float().contiguous(), solution[-1].float().clone()
    return PreviewFit(PreviewMap(weight, bias), 1 - left.item())
