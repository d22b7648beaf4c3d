"""What an image will take, told before it is run: tiles, seconds, bytes."""

from __future__ import annotations

from dataclasses import dataclass

from varsr_engine.config import ModelConfig
from varsr_engine.engine.decoding import window_axis
from varsr_engine.engine.memory import MemoryPlan, decoder_bytes
from varsr_engine.engine.tiling import TileGrid


@dataclass(frozen=True, slots=True)
class UpscalePlan:
    """seconds come from what this engine ran so far: None before its first batch."""

    size: tuple[int, int]  # (width, height) of the output
    tiles: int
    batch: int  # tiles at once
    windows: int  # of the decoder, each of which runs twice where there are several
    seconds: float | None
    weight_bytes: int
    peak_bytes: int  # weights, the largest stage, the whole latent and a band; not the picture itself


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
    config: ModelConfig, size: tuple[int, int], grid: TileGrid | None, batch: MemoryPlan, side: int, pace: Pace
) -> UpscalePlan:
    """The plan of an output; batch: the memory of a batch of tiles; side: cells of a decoder's window."""
    f, element = config.downsample, 4
    width, height = (config.image_side,) * 2 if grid is None else grid.image_size
    axes = [window_axis(length // f, side, f, config.latent_side) for length in (height, width)]
    windows = len(axes[0].starts) * len(axes[1].starts)
    cells = (width // f) * (height // f)
    window = decoder_bytes(config, axes[0].side * axes[1].side * f * f, element)
    stages = {**batch.stages, "decoder": window}
    whole = 2 * config.latent_channels * cells * element + 4 * 3 * width * axes[0].side * f * element
    decoded = windows * axes[0].side * axes[1].side * f * f * (2 if windows > 1 else 1)
    tiles = 1 if grid is None else len(grid)
    seconds = None if pace.tile is None or pace.pixel is None else tiles * pace.tile + decoded * pace.pixel
    peak = batch.weights + max(stages.values()) + whole
    return UpscalePlan(size, tiles, min(tiles, batch.batch), windows, seconds, batch.weights, peak)
