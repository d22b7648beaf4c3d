"""Images larger than one tile: where the tiles lie, how they are cut, and how their latents become one.

Source: the published tiled inference (spec section 10). All sizes follow from the model's config.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

from varsr_engine.config import ModelConfig
from varsr_engine.engine.latent_rows import LatentRows
from varsr_engine.errors import InvalidParamsError

Origin = tuple[int, int]

LEAST_WEIGHT = 1e-6  # of a cell: at the picture's border a tile's outermost cells are all there is
WINDOW_VARIANCE = 0.01  # in units of the tile's side
# Key-value caches and buffers of the tiles of one forward pass. On two CPU cores a small model gains little from more
# tiles at once on an idle machine (1, 4 and 11 within 5 %), but much on a busy one, where every barrier waits.
PASS_BYTES = {"cpu": 128 * 1024 * 1024, "cuda": 8 * 1024**3}
GRADIENT_FLOOR = 1e-6  # added to squared differences: a quarter of a level of 255 is no seam, nor is a constant image
BLOCK_CELLS = 8  # a side, in which seams are compared to what is near them


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Square tiles that cover an image's latent, in cells."""

    rows: int  # of the whole latent
    columns: int
    side: int  # of a tile
    downsample: int  # pixels a cell
    tops: tuple[int, ...]  # first cell of each row of tiles
    lefts: tuple[int, ...]
    overlap: int = 0  # cells that neighbours share, the last ones more

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
    return TileGrid(rows, columns, p, f, axis_offsets(rows, p, overlap), axis_offsets(columns, p, overlap), overlap)


def gaussian_window(side: int) -> torch.Tensor:
    """Weights (side, side) float32 of a tile's cells: a Gaussian with variance 0.01 in units of the side.

    As published, the midpoint is (n-1)/2 along columns, but n/2 along rows: a tile counts half a cell further down.
    """

    def axis(midpoint: float) -> torch.Tensor:
        distance = (torch.arange(side, dtype=torch.float64) - midpoint) / side
        return torch.exp(-(distance**2) / (2 * WINDOW_VARIANCE)) / math.sqrt(2 * math.pi * WINDOW_VARIANCE)

    return (axis(side / 2)[:, None] * axis((side - 1) / 2)).float()


def ramp_window(side: int, overlap: int) -> torch.Tensor:
    """Weights (side, side) float32 of a tile's cells: 1 inside, a raised cosine over the overlap with each neighbour.

    The outermost eighth of the overlap counts for nothing. On smooth pictures the published window, which hands over
    within two cells, leaves a step that this one does not (docs/architecture.md has both measured).
    """
    margin = overlap // 8
    distance = torch.arange(side, dtype=torch.float64) + 0.5 - margin
    ramp = max(1, overlap - 2 * margin)
    nearest = torch.minimum(distance, distance.flip(0)) / ramp
    weight = torch.sin(nearest.clamp(0, 1) * (math.pi / 2)).square().clamp_min(LEAST_WEIGHT)
    return (weight[:, None] * weight).float()


class LatentBlend:
    """The whole latent as the weighted mean of tiles: sum of window x latent, over the sum of windows.

    Only the rows of one row of tiles are held; those that no later tile reaches are done, and go to `LatentRows`.
    """

    def __init__(self, grid: TileGrid, window: torch.Tensor, count: int, channels: int, device: torch.device) -> None:
        """window (p, p): what a tile's cells count for."""
        self._grid, self._top = grid, 0
        self._window = window.to(device)
        self._sum = torch.zeros(count, channels, grid.side, grid.columns, device=device)
        self._weight = torch.zeros(grid.side, grid.columns, device=device)
        self._done = [LatentRows(channels, grid.columns) for _ in range(count)]

    def add(self, latent: torch.Tensor, origin: Origin) -> None:
        """One tile's latents (count, Z, p, p). Tiles are added in the grid's order, whatever batches they came in."""
        (top, left), p = origin, self._grid.side
        if top > self._top:
            self._finish(top - self._top)
        self._sum[..., left : left + p] += latent * self._window
        self._weight[:, left : left + p] += self._window
        if origin == (self._grid.tops[-1], self._grid.lefts[-1]):
            self._finish(p)

    def _finish(self, rows: int) -> None:
        """The first rows are complete; the others move up."""
        for latent, done in zip(self._sum[..., :rows, :] / self._weight[:rows], self._done, strict=True):
            done.append(latent)
        self._top += rows
        for t in (self._sum, self._weight):
            kept = t[..., rows:, :].clone()
            t.zero_()[..., : kept.shape[-2], :] = kept

    def result(self) -> list[LatentRows]:
        """One latent an image, once all tiles are there."""
        assert self._top == self._grid.rows, "tiles are missing"
        return self._done


def tiles_per_pass(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> int:
    """How many tiles to run at once where nothing was asked for: small models gain from larger products."""
    cache = 2 * config.depth * sum(config.step_lengths)
    buffers = (3 + config.mlp_ratio) * max(config.step_lengths)
    tile = 2 * (cache + buffers) * config.embed_dim * dtype.itemsize  # both branches
    return max(1, PASS_BYTES[device.type] // tile)


class SeamMeter:
    """Gradient energy where one tile hands over to the next, over that near it, of an image that comes in bands.

    A tile hands over to its neighbour in the middle of their overlap; a cell on each side of it counts. Energy is
    measured block by block against the block's own mean, so that each place counts alike: over a whole picture a few
    strong edges would outweigh everything, and a score would tell where they lie.
    """

    def __init__(self, grid: TileGrid) -> None:
        width, height = grid.image_size
        self._rows, self._columns = _seams(grid, grid.tops, height), _seams(grid, grid.lefts, width)
        self._block = BLOCK_CELLS * grid.downsample
        self._above: torch.Tensor | None = None
        self._waiting: list[torch.Tensor] = []
        self._top = 0  # of the rows that wait
        self._sums, self._counts = [0.0, 0.0], [0, 0]  # elsewhere, at seams

    def add(self, band: torch.Tensor) -> None:
        """The next rows (3, h, W) in [0, 1]."""
        self._waiting.append(band)
        if sum(part.shape[1] for part in self._waiting) < self._block:
            return
        rows = torch.cat(self._waiting, dim=1)
        whole = rows.shape[1] // self._block * self._block
        for part in rows[:, :whole].split(self._block, dim=1):
            self._measure(part.double())
        self._waiting = [rows[:, whole:].clone()]

    def _measure(self, rows: torch.Tensor) -> None:
        """One row of blocks."""
        B, above = self._block, self._above
        across = torch.cat((rows[..., :1], rows), dim=2).diff(dim=2).square().mean(0)  # pixel i: from i - 1 to i
        down = torch.cat((rows[:, :1] if above is None else above, rows), dim=1).diff(dim=1).square().mean(0)
        W = rows.shape[2] // B * B
        # A block is BLOCK_CELLS long across the seam, half as long along it.
        if W:
            blocks = across[:, :W].unflatten(0, (2, -1)).mean(1).unflatten(1, (-1, B))  # (2, blocks, lines)
            self._count(blocks, self._columns[:W].unflatten(0, (-1, B)))
            blocks = down[:, :W].unflatten(1, (-1, B // 2)).mean(2).T[:, None]  # (blocks, 1, lines)
            self._count(blocks, self._rows[self._top : self._top + B][None])
        self._above = rows[:, -1:].clone()
        self._top += B

    def _count(self, energy: torch.Tensor, seam: torch.Tensor) -> None:
        """energy (..., n, lines) of blocks; seam (n, lines): which lines lie at seams."""
        energy = energy + GRADIENT_FLOOR
        relative, seam = energy / energy.mean(-1, keepdim=True), seam.to(energy.device).expand_as(energy)
        for i, part in enumerate((relative[~seam], relative[seam])):
            self._sums[i] += part.sum().item()
            self._counts[i] += part.numel()

    @property
    def ratio(self) -> float:
        """Mean relative energy of differences across the seams, over that of the other lines."""
        if 0 in self._counts:
            return 1.0
        elsewhere, seams = (total / count for total, count in zip(self._sums, self._counts, strict=True))
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
