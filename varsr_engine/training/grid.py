"""Pictures of what a model in training makes of a batch."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from varsr_engine.atomic import atomic_writer


def save_grid(path: Path, columns: list[torch.Tensor], gap: int = 4) -> None:
    """Write columns, each (N, 3, S, S) in [-1, 1], as one PNG: a row an image, a column a stage."""
    rows = torch.stack([c.detach().float().cpu() for c in columns], dim=1)  # (N, columns, 3, S, S)
    padded = torch.nn.functional.pad(rows, (0, gap, 0, gap), value=1.0)
    grid = padded.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    pixels = ((grid.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()
    with atomic_writer(path) as file:
        Image.fromarray(pixels).save(file, "PNG")
