"""Decoding a latent of any size in bounded memory: window by window, blended, given out as bands of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from varsr_engine.config import ModelConfig
from varsr_engine.engine.convolutions import Convolutional
from varsr_engine.engine.latent_rows import LatentRows
from varsr_engine.engine.memory import decoder_bytes
from varsr_engine.engine.tiling import axis_offsets

OVERLAP = 8  # cells that neighbouring windows share
# Cells at a window's inner edges that count for nothing: there convolutions see the zeros beyond the window.
MARGIN = 2
WINDOW_BYTES = 256 * 1024 * 1024  # of a window's maps, unless a tile of the model takes more
BAND_BYTES = 16 * 1024 * 1024  # of the rows of the whole image that a row of windows makes
SLICE_BYTES = 8 * 1024 * 1024  # of the rows that are finished at once: colour correction needs several copies of them
WIDEST_WINDOW = 64  # cells: beyond it the overlaps are a small part, and attention in the window grows with its square

Decode = Callable[[Convolutional, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class WindowAxis:
    """Windows along one axis, in cells, and what each counts for at each pixel."""

    starts: tuple[int, ...]
    side: int  # of a window; the whole axis where there is one
    weights: list[torch.Tensor]  # (side * downsample,) a window; those of one pixel add up to 1


def window_shape(config: ModelConfig, columns: int, element: int, budget: int = WINDOW_BYTES) -> tuple[int, int]:
    """(rows, columns), in cells, of the largest window for a latent of so many columns; at least a tile of the model.

    Its maps fit the budget, and its rows of the whole image BAND_BYTES: images that are very wide have lower windows.
    """
    f, side = config.downsample, config.latent_side
    while side < WIDEST_WINDOW and decoder_bytes(config, (2 * side * f) ** 2, element) <= budget:
        side *= 2
    rows = side
    while rows > config.latent_side and band_bytes(rows * f, columns * f) > BAND_BYTES:
        rows //= 2
    return rows, side


def band_bytes(rows: int, columns: int) -> int:
    """Of so many rows of an image, three channels in float32."""
    return 3 * 4 * rows * columns


def window_axis(length: int, side: int, downsample: int, least: int = 1) -> WindowAxis:
    """The windows of an axis of `length` cells: overlapping, the last one aligned to the border.

    As few as windows of `side` cells would be, and no larger than they need to be then, but at least `least` cells.
    """
    if length <= side:
        return WindowAxis((0,), length, [torch.ones(length * downsample)])
    overlap = min(OVERLAP, side // 2)
    count = math.ceil((length - overlap) / (side - overlap))
    side = min(side, max(least, math.ceil((length + (count - 1) * overlap) / count)))
    overlap = min(overlap, side // 2)
    margin = min(MARGIN, (overlap - 1) // 2)
    starts = axis_offsets(length, side, overlap)
    # Distance of a pixel's centre to the window's edge, cut off at both ends of the overlap: 0 in the margin.
    pixel = torch.arange(side * downsample, dtype=torch.float64) + 0.5
    ramp = (overlap - 2 * margin) * downsample
    total = torch.zeros(length * downsample, dtype=torch.float64)
    weights = []
    for start in starts:
        weight = torch.ones_like(pixel)
        if start > 0:
            weight = torch.minimum(weight, (pixel - margin * downsample) / ramp)
        if start + side < length:
            weight = torch.minimum(weight, (side * downsample - pixel - margin * downsample) / ramp)
        weights.append(weight.clamp_min(0))
        total[start * downsample : (start + side) * downsample] += weights[-1]
    shares = (
        (weight / total[start * downsample : (start + side) * downsample]).float()
        for start, weight in zip(starts, weights, strict=True)
    )
    return WindowAxis(starts, side, list(shares))


def decode_in_bands(
    decoder: Convolutional,
    latent: LatentRows,
    device: torch.device,
    shape: tuple[int, int],
    downsample: int,
    least: int = 1,
) -> Iterator[torch.Tensor]:
    """Bands (3, h, W * f) of the image of a latent (Z, H, W), top to bottom, on the device, not clamped.

    A latent of at most `shape` (rows, columns) is decoded as it is; a larger one in windows of at most that shape, at
    least `least` cells a side, which share the statistics of their normalisations (`GroupStatistics`) and attend
    within themselves. Bands hold at most SLICE_BYTES, so that what follows needs little memory either.
    """
    H, W = latent.rows, latent.columns
    rows, columns = (window_axis(length, side, downsample, least) for length, side in zip((H, W), shape, strict=True))
    slices = max(1, SLICE_BYTES // band_bytes(1, W * downsample))
    if len(rows.starts) == len(columns.starts) == 1:
        yield from decoder(latent.whole()[None].to(device))[0].split(slices, dim=1)
        return

    def strip(top: int) -> torch.Tensor:
        return latent.take(top, top + rows.side).to(device)

    def window(cells: torch.Tensor, left: int) -> torch.Tensor:
        return decoder(cells[None, :, :, left : left + columns.side].contiguous())[0]

    with decoder.statistics.learning() as moments:
        for top in rows.starts:
            cells = strip(top)
            for left in columns.starts:
                window(cells, left)
    height = rows.side * downsample
    band = torch.zeros(3, height, W * downsample, device=device)
    for i, top in enumerate(rows.starts):
        weight_y, cells = rows.weights[i].to(device)[:, None], strip(top)
        for left, weight_x in zip(columns.starts, columns.weights, strict=True):
            x = left * downsample
            part = band[..., x : x + columns.side * downsample]
            with decoder.statistics.shared(moments):  # not across a yield: others may decode meanwhile
                pixels = window(cells, left)
            part += pixels * (weight_y * weight_x.to(device))
        del cells
        finished = ((rows.starts[i + 1] - top) if i + 1 < len(rows.starts) else rows.side) * downsample
        for piece in band[:, :finished].split(slices, dim=1):
            yield piece.clone()
        rest = band[:, finished:].clone()
        band.zero_()
        band[:, : rest.shape[1]] = rest
