"""Which random numbers a request uses: streams and positions of the counter-based generator."""

from __future__ import annotations

import torch

# A stream a purpose, so that no two draws share a counter. The refiner's start is step 0, its n-th step is n.
REFINER_STREAM, SAMPLING_STREAM = 1, 2


def grid_positions(rows: range, columns: range, device: torch.device) -> torch.Tensor:
    """Positions (len(rows) * len(columns),) int64 of map cells, row-major: row << 16 | column.

    Noise depends on a cell's place in the whole map, not on the tile that computes it.
    """
    row, column = torch.tensor(rows, device=device), torch.tensor(columns, device=device)
    return (row[:, None] << 16 | column[None, :]).flatten()


def map_positions(side: int, device: torch.device) -> torch.Tensor:
    """Positions of a side x side map that starts at the origin."""
    return grid_positions(range(side), range(side), device)
