"""Previews: a picture as it is so far, while its scales are still running."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from varsr_engine.checkpoint import PREVIEW_BIAS, PREVIEW_WEIGHT, Checkpoint
from varsr_engine.engine.tiling import TileGrid
from varsr_engine.imaging import Picture, encode_picture, resize_rgb
from varsr_engine.imaging.samples import to_uint8

Pixels = NDArray[np.uint8]


class PreviewMap(NamedTuple):
    """The linear map from a latent's cells to the mean colours of what the decoder makes of them, fitted to it.

    A model's weights bring it, or it is fitted at its first use (`engine/preview_fit.py`).
    """

    weight: torch.Tensor  # (3, Z) float32
    bias: torch.Tensor  # (3,) float32

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> PreviewMap | None:
        """The one that a model's weights bring, on the CPU; None if they bring none."""
        if not checkpoint.preview_shapes:
            return None
        read = checkpoint.open()
        return cls(*(read(name).to(torch.float32, copy=True) for name in (PREVIEW_WEIGHT, PREVIEW_BIAS)))

    def colours(self, latent: torch.Tensor) -> torch.Tensor:
        """(3, h, w) in [0, 1] of a latent (Z, h, w), where that lies."""
        weight, bias = (t.to(latent.device, non_blocking=True) for t in self)
        return torch.addmm(bias[:, None], weight, latent.flatten(1)).clamp_(0, 1).unflatten(1, latent.shape[1:])

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """By their names in a model's weights."""
        return {PREVIEW_WEIGHT: self.weight, PREVIEW_BIAS: self.bias}


class Place(NamedTuple):
    """Where a tile shows in a preview, and which part of the tile that is."""

    corner: tuple[int, int]  # (left, top) in the preview's pixels
    size: tuple[int, int]  # (width, height)
    box: tuple[float, float, float, float]  # left, top, right, bottom as shares of the tile's sides


@dataclass(frozen=True, slots=True, eq=False)
class Preview:
    """A whole picture as it is so far: its tiles in 8 bits, over the resized input where there are none yet.

    Colours are the network's own: neither colour fix nor fidelity has been applied. Drawn each time it is asked for,
    by whoever asks, so that the engine never waits for it.
    """

    size: tuple[int, int]  # (width, height) in pixels
    background: Pixels | None  # (height, width, 3); None where one tile is all
    parts: tuple[tuple[Place, Pixels], ...]  # tiles (h, w, 3), of any size

    @property
    def image(self) -> Image.Image:
        """RGB."""
        canvas = Image.new("RGB", self.size) if self.background is None else Image.fromarray(self.background)
        for place, pixels in self.parts:
            height, width = pixels.shape[:2]
            left, top, right, bottom = place.box
            box = (left * width, top * height, right * width, bottom * height)
            tile = Image.fromarray(pixels).resize(place.size, Image.Resampling.BICUBIC, box=box)
            canvas.paste(tile, place.corner)
        return canvas

    def encode(self, format: str = "JPEG", quality: int = 80) -> bytes:
        """As JPEG, PNG, WEBP or TIFF bytes. Raises UnsupportedFormatError, InvalidParamsError (quality)."""
        rgb = np.asarray(self.image, dtype=np.float32) / np.float32(255)
        return encode_picture(Picture(rgb=rgb), format, quality=quality)


class PreviewCanvas:
    """What the previews of one picture are made of: each tile as it was last seen."""

    def __init__(self, picture: Picture, grid: TileGrid | None, output: tuple[int, int], max_side: int) -> None:
        """output: (width, height) of the result. max_side: of the previews, which are never larger than the output."""
        self._size = fitted(output, max_side)
        self._background = None if grid is None else to_uint8(resize_rgb(picture.rgb, self._size))
        self._places = [Place((0, 0), self._size, (0, 0, 1, 1))] if grid is None else tile_places(grid, self._size)
        self._tiles: dict[int, Pixels] = {}

    def show(self, index: int, colours: torch.Tensor) -> Preview:
        """The preview once a tile looks like colours (3, h, w), in [0, 1]."""
        rounded = colours.mul(255).add_(0.5).to(torch.uint8)
        pixels = np.ascontiguousarray(rounded.permute(1, 2, 0).cpu().numpy())
        pixels.flags.writeable = False
        self._tiles[index] = pixels
        shown = ((self._places[i], tile) for i, tile in self._tiles.items())
        return Preview(self._size, self._background, tuple(part for part in shown if min(part[0].size) > 0))


def fitted(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """(width, height) with the longer side at most max_side, aspect kept to the pixel."""
    share = min(1.0, max_side / max(size))
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def tile_places(grid: TileGrid, size: tuple[int, int]) -> list[Place]:
    """Where each tile of the grid shows in a preview of (width, height): up to the middle of its overlaps."""
    columns, rows = (
        axis_parts(grid.lefts, grid.side, grid.columns, size[0]),
        axis_parts(grid.tops, grid.side, grid.rows, size[1]),
    )
    return [
        Place((x.start, y.start), (len(x), len(y)), (x_box[0], y_box[0], x_box[1], y_box[1]))
        for y, y_box in rows
        for x, x_box in columns
    ]


def axis_parts(offsets: tuple[int, ...], side: int, cells: int, pixels: int) -> list[tuple[range, tuple[float, float]]]:
    """Along an axis of `cells` cells in `pixels` pixels: each tile's pixels, and where in it they begin and end."""
    middles = ((first + second + side) / 2 for first, second in itertools.pairwise(offsets))
    edges = [0, *(round(middle / cells * pixels) for middle in middles), pixels]

    def share(pixel: int, offset: int) -> float:
        return min(1.0, max(0.0, (pixel / pixels * cells - offset) / side))

    parts = zip(offsets, itertools.pairwise(edges), strict=True)
    return [(range(start, end), (share(start, offset), share(end, offset))) for offset, (start, end) in parts]
