"""What an image will take, told before it is run: tiles, seconds, bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from varsr_engine.config import ModelConfig
from varsr_engine.engine.decoding import SLICE_BYTES, band_bytes, window_axis
from varsr_engine.engine.latent_rows import SPOOL_BYTES
from varsr_engine.engine.memory import MemoryPlan, decoder_bytes
from varsr_engine.engine.tiling import TileGrid

FINISHING_COPIES = 8  # of the rows that are finished at once: resizing, colour correction, their inputs


@dataclass(frozen=True, slots=True)
class UpscalePlan:
    """seconds come from what this engine ran so far: None before its first batch."""

    size: tuple[int, int]  # (width, height) of the output
    tiles: int
    batch: int  # tiles at once
    windows: int  # of the decoder, each of which runs twice where there are several
    seconds: float | None
    weight_bytes: int
    peak_bytes: int  # weights, the largest stage, the latent in memory, bands; not the picture itself


class Pace:
    """Seconds a tile takes up to the decoder, and an output pixel in the decoder, as measured."""

    def __init__(self) -> None:
        self.tile: float | None = None
        self.pixel: float | None = None

    def note_tiles(self, seconds: float, tiles: int) -> None:
        self.tile = seconds / tiles

    def note_pixels(self, seconds: float, pixels: int) -> None:
        self.pixel = seconds / pixels


def plan_of(
    config: ModelConfig,
    size: tuple[int, int],
    grid: TileGrid | None,
    batch: MemoryPlan,
    window_shape: Callable[[int], tuple[int, int]],
    pace: Pace,
) -> UpscalePlan:
    """The plan of an output; batch: the memory of a batch of tiles; window_shape: as `Pipeline.window_shape`."""
    f, element = config.downsample, 4
    width, height = (config.image_side,) * 2 if grid is None else grid.image_size
    shape = window_shape(width // f)
    axes = [
        window_axis(length // f, side, f, config.latent_side)
        for length, side in zip((height, width), shape, strict=True)
    ]
    windows = len(axes[0].starts) * len(axes[1].starts)
    window = decoder_bytes(config, axes[0].side * axes[1].side * f * f, element)
    stages = {**batch.stages, "decoder": window}
    row = config.latent_channels * (width // f) * element  # of the latent
    band = band_bytes(axes[0].side * f, width)
    whole = 2 * row * min(height // f, config.latent_side) + min(row * height // f, SPOOL_BYTES)
    whole += 2 * band + FINISHING_COPIES * min(band, SLICE_BYTES)
    decoded = windows * axes[0].side * axes[1].side * f * f * (2 if windows > 1 else 1)
    tiles = 1 if grid is None else len(grid)
    seconds = None if pace.tile is None or pace.pixel is None else tiles * pace.tile + decoded * pace.pixel
    peak = batch.weights + max(stages.values()) + whole
    return UpscalePlan(size, tiles, min(tiles, batch.batch), windows, seconds, batch.weights, peak)
