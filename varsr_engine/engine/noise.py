"""Which random numbers a request uses: streams and positions of the counter-based generator."""

from __future__ import annotations

import torch

# A stream a purpose, so that no two draws share a counter. The refiner's start is step 0, its n-th step is n.
REFINER_STREAM, SAMPLING_STREAM = 1, 2


def map_positions(side: int, device: torch.device) -> torch.Tensor:
    """Positions (side^2,) int64 of the cells of a map that starts at the origin, row-major: row << 16 | column."""
    cells = torch.arange(side, device=device)
    return (cells[:, None] << 16 | cells[None, :]).flatten()


def tile_positions(cells: torch.Tensor, side: int, origins: torch.Tensor, latent_side: int) -> torch.Tensor:
    """Positions (B, side^2) int64 of maps whose first cells lie at `origins` (B, 2) of the whole image's latent.

    cells: `map_positions(side)`. Noise depends on a cell's place in the whole image, not on the tile that computes it:
    at the last scale (side = latent_side) tiles agree wherever they overlap. A coarser scale's grid starts at the
    origin scaled to it, to the nearest cell.
    """
    first = (2 * origins * side + latent_side) // (2 * latent_side)
    return cells + (first[:, :1] << 16 | first[:, 1:])
