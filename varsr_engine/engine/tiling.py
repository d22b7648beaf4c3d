"""Images larger than one tile: where the tiles lie, how they are cut, and how their latents become one.

Source: the published tiled inference (spec section 10). All sizes follow from the model's config.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from varsr_engine.config import ModelConfig
from varsr_engine.errors import InvalidParamsError

Origin = tuple[int, int]

WINDOW_VARIANCE = 0.01  # in units of the tile's side
# Key-value caches and buffers of the tiles of one forward pass. On two CPU cores a small model gains little from more
# tiles at once on an idle machine (1, 4 and 11 within 5 %), but much on a busy one, where every barrier waits.
PASS_BYTES = {"cpu": 128 * 1024 * 1024, "cuda": 8 * 1024**3}
GRADIENT_FLOOR = 1e-8  # squared differences below it count as none: a constant image has no seams


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Square tiles that cover an image's latent, in cells."""

    rows: int  # of the whole latent
    columns: int
    side: int  # of a tile
    downsample: int  # pixels a cell
    tops: tuple[int, ...]  # first cell of each row of tiles
    lefts: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    @property
    def origins(self) -> list[Origin]:
        """(row, column) of each tile's first cell, row by row."""
        return [(top, left) for top in self.tops for left in self.lefts]

    @property
    def image_size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.columns * self.downsample, self.rows * self.downsample

    def cut(self, image: torch.Tensor, origins: list[Origin]) -> torch.Tensor:
        """The pixels (n, 3, S, S) of some tiles of an image (3, H, W)."""
        f, S = self.downsample, self.side * self.downsample
        return torch.stack([image[:, r * f : r * f + S, c * f : c * f + S] for r, c in origins])

    def batches(self, most: int) -> Iterator[list[Origin]]:
        """All tiles, at most `most` at a time, in batches as equal as they can be."""
        origins, passes = self.origins, math.ceil(len(self) / most)
        for i in range(passes):
            yield origins[i * len(self) // passes : (i + 1) * len(self) // passes]


def axis_offsets(length: int, side: int, overlap: int) -> tuple[int, ...]:
    """First cells of the tiles along one axis: side - overlap apart, the last one aligned to the border."""
    last = length - side
    return (*range(0, last, side - overlap), last)


def tile_grid(config: ModelConfig, size: tuple[int, int], overlap: int | None = None) -> TileGrid | None:
    """The tiles of an output of (width, height) pixels; None where one tile holds it all.

    Sides are rounded up to whole cells, and to one tile. overlap: cells that neighbours share, a quarter of a tile
    unless given.
    """
    p, f = config.latent_side, config.downsample
    overlap = p // 4 if overlap is None else overlap
    if not 0 <= overlap < p:
        raise InvalidParamsError(f"tile_overlap must be an integer in [0, {p - 1}] cells for this model, got {overlap}")
    columns, rows = (max(p, math.ceil(pixels / f)) for pixels in size)
    if (columns, rows) == (p, p):
        return None
    return TileGrid(rows, columns, p, f, axis_offsets(rows, p, overlap), axis_offsets(columns, p, overlap))


def gaussian_window(side: int) -> torch.Tensor:
    """Weights (side, side) float32 of a tile's cells: a Gaussian with variance 0.01 in units of the side.

    As published, the midpoint is (n-1)/2 along columns, but n/2 along rows: a tile counts half a cell further down.
    """

    def axis(midpoint: float) -> torch.Tensor:
        distance = (torch.arange(side, dtype=torch.float64) - midpoint) / side
        return torch.exp(-(distance**2) / (2 * WINDOW_VARIANCE)) / math.sqrt(2 * math.pi * WINDOW_VARIANCE)

    return (axis(side / 2)[:, None] * axis((side - 1) / 2)).float()


class LatentBlend:
    """The whole latent as the weighted mean of tiles: sum of window x latent, over the sum of windows."""

    def __init__(self, grid: TileGrid, count: int, channels: int, device: torch.device) -> None:
        self._window = gaussian_window(grid.side).to(device)
        self._sum = torch.zeros(count, channels, grid.rows, grid.columns, device=device)
        self._weight = torch.zeros(grid.rows, grid.columns, device=device)

    def add(self, latent: torch.Tensor, origin: Origin) -> None:
        """One tile's latents (count, Z, p, p). Tiles are added in the grid's order, whatever batches they came in."""
        (top, left), p = origin, self._window.shape[0]
        self._sum[..., top : top + p, left : left + p] += latent * self._window
        self._weight[top : top + p, left : left + p] += self._window

    def result(self) -> torch.Tensor:
        """(count, Z, rows, columns), in the memory of the sum: to be asked for once, when all tiles are there."""
        return self._sum.div_(self._weight)


def tiles_per_pass(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> int:
    """How many tiles to run at once where nothing was asked for: small models gain from larger products."""
    cache = 2 * config.depth * sum(config.step_lengths)
    buffers = (3 + config.mlp_ratio) * max(config.step_lengths)
    tile = 2 * (cache + buffers) * config.embed_dim * dtype.itemsize  # both branches
    return max(1, PASS_BYTES[device.type] // tile)


class SeamMeter:
    """Gradient energy where one tile hands over to the next, and elsewhere, of an image that comes in bands.

    A tile hands over to its neighbour in the middle of their overlap; a cell on each side of it counts.
    """

    def __init__(self, grid: TileGrid) -> None:
        width, height = grid.image_size
        self._rows, self._columns = _seams(grid, grid.tops, height), _seams(grid, grid.lefts, width)
        self._above: torch.Tensor | None = None
        self._top = 0
        self._sums, self._counts = [0.0, 0.0], [0, 0]  # elsewhere, at seams

    def add(self, band: torch.Tensor) -> None:
        """The next rows (3, h, W) in [0, 1]."""
        band, top = band.double(), self._top
        self._top += band.shape[1]
        if self._columns.any():
            self._count(band.diff(dim=2).square().mean(dim=0).sum(0), self._columns[1:], band.shape[1])
        if self._rows.any():
            rows = band if self._above is None else torch.cat((self._above, band), dim=1)
            first = top + 1 if self._above is None else top
            self._count(rows.diff(dim=1).square().mean(dim=0).sum(1), self._rows[first : self._top], band.shape[2])
        self._above = band[:, -1:].clone()

    def _count(self, energy: torch.Tensor, seam: torch.Tensor, pixels: int) -> None:
        """energy: of each difference along an axis, summed over `pixels` pixels across it."""
        seam = seam.to(energy.device)
        for i, part in enumerate((energy[~seam], energy[seam])):
            self._sums[i] += part.sum().item()
            self._counts[i] += part.numel() * pixels

    @property
    def ratio(self) -> float:
        """Mean squared difference of neighbouring pixels across the seams, over that elsewhere."""
        if 0 in self._counts:
            return 1.0
        elsewhere, seams = (
            total / count + GRADIENT_FLOOR for total, count in zip(self._sums, self._counts, strict=True)
        )
        return seams / elsewhere


def _seams(grid: TileGrid, offsets: tuple[int, ...], length: int) -> torch.Tensor:
    """(length,) bool: whether the difference of the pixels i - 1 and i lies at a seam."""
    step = torch.arange(length)
    seam = torch.zeros(length, dtype=torch.bool)
    for first, second in itertools.pairwise(offsets):
        middle = (first + second + grid.side) * grid.downsample / 2
        seam |= (step - middle).abs() <= grid.downsample
    return seam


def seam_score(image: torch.Tensor, reference: torch.Tensor, grid: TileGrid) -> float:
    """`SeamMeter.ratio` of the decoded tiles, image (3, H, W) in [0, 1], over that of the network's input, reference.

    1 is seamless: what the picture itself has where tiles meet does not count.
    """
    meters = SeamMeter(grid), SeamMeter(grid)
    for meter, picture in zip(meters, (image, reference), strict=True):
        meter.add(picture)
    return meters[0].ratio / meters[1].ratio
