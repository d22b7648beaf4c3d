"""An image of several tiles: its input cut where a tile needs it, its output finished band by band.

Memory beside the source and the latent is that of a few tiles and bands, whatever the size of the output.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from varsr_engine.config import ColorFix
from varsr_engine.engine.tiling import Origin, SeamMeter, TileGrid
from varsr_engine.imaging import Picture
from varsr_engine.imaging.banded import Bands, color_fix_bands, mix_bands, resize_bands
from varsr_engine.imaging.picture import FloatArray
from varsr_engine.imaging.resizing import ResizedView


class LargeImage:
    """A picture, its tiles, and the (width, height) that it becomes."""

    def __init__(self, picture: Picture, grid: TileGrid, size: tuple[int, int]) -> None:
        self.grid, self.size = grid, size
        self._input = ResizedView(picture.rgb, grid.image_size)
        self._style = ResizedView(picture.rgb, size)
        self._meters = SeamMeter(grid), SeamMeter(grid)

    def tiles(self, origins: list[Origin]) -> torch.Tensor:
        """The network's input (n, 3, S, S) in [-1, 1] of some tiles, resized in float, not in 8 bits as published."""
        f, S = self.grid.downsample, self.grid.side * self.grid.downsample
        cut = (self._input.part(c * f, r * f, c * f + S, r * f + S) for r, c in origins)
        return torch.stack([channels_first(part) for part in cut]) * 2 - 1

    def finish(self, decoded: Bands, color_fix: ColorFix, fidelity: float) -> Iterator[FloatArray]:
        """The output's rows (h, W, 3) from the decoded image's, both in [0, 1]; measures the seams on the way."""
        bands = resize_bands(self._measured(decoded), self.grid.image_size, self.size)
        bands = color_fix_bands(color_fix, bands, self._style_rows, self.size[1])
        for band in mix_bands(bands, self._style_rows, fidelity):
            yield np.ascontiguousarray(band.permute(1, 2, 0).numpy())

    @property
    def seam_score(self) -> float:
        """As `tiling.seam_score`, of all bands that were finished."""
        return self._meters[0].ratio / self._meters[1].ratio

    def _measured(self, decoded: Bands) -> Bands:
        self._meters = SeamMeter(self.grid), SeamMeter(self.grid)
        top = 0
        for band in decoded:
            bottom = top + band.shape[1]
            self._meters[0].add(band)
            self._meters[1].add(channels_first(self._input.rows(top, bottom)))
            yield band
            top = bottom

    def _style_rows(self, top: int, bottom: int) -> torch.Tensor:
        return channels_first(self._style.rows(top, bottom))


def channels_first(rgb: FloatArray) -> torch.Tensor:
    """(h, w, 3) -> (3, h, w), contiguous."""
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))
