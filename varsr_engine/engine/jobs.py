"""Upscaling for the scheduler: an image as a job of one or more tiles, and the runner of batches of tiles.

A tile's input is cut when its batch runs, its latent is blended as it comes, and the image is decoded and finished when
its last tile is there. Tiles of all images that run the same program share batches: their settings are data.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from varsr_engine.engine.large_image import LargeImage
from varsr_engine.engine.nonfinite import run_again
from varsr_engine.engine.params import UpscaleParams
from varsr_engine.engine.pictures import blend_window, published_input
from varsr_engine.engine.preview import Preview, PreviewCanvas
from varsr_engine.engine.request import BatchRequest
from varsr_engine.engine.result import UpscaleResult
from varsr_engine.engine.scheduling import Checkpoint, Unit
from varsr_engine.engine.tiling import LatentBlend, TileGrid
from varsr_engine.imaging import Picture, resize_rgb, to_network_input

if TYPE_CHECKING:
    from varsr_engine.engine.queued import QueuedEngine


class Program(NamedTuple):
    """What decides which code a batch runs: a job's key."""

    one_tile: bool  # decoded with its batch; else tile by tile latents, and the decoder when all are there
    greedy: bool
    steps: int | None
    refine: bool
    scales: int | None  # of a draft
    guided: int | None


class UpscaleJob:
    """One image on its way through the scheduler."""

    def __init__(
        self, engine: QueuedEngine, picture: Picture, grid: TileGrid | None, params: UpscaleParams, seed: int
    ) -> None:
        self._engine, self._picture, self._grid, self._params, self._seed = engine, picture, grid, params, seed
        self.units = 1 if grid is None else len(grid)
        self.request = engine.requests_of(grid, params, seed)
        scales = engine.scales_to_run(params.stop_at_scale)
        guided = engine.scales_to_guide(params.guided_scales, scales)
        self.key = Program(grid is None, self.request.greedy, params.steps, params.refiner == "on", scales, guided)
        self._canvas = None
        if params.previews != "none":
            self._canvas = PreviewCanvas(picture, grid, params.output_size(*picture.size), params.preview_max_side)
        self.seconds: dict[str, float] = {}
        self._warnings: list[str] = []
        self._waiting: dict[int, torch.Tensor] = {}  # latents that came before those of tiles before them
        self._next = 0
        config = engine.model_config
        if grid is None:
            side = config.image_side
            self._lr = to_network_input(resize_rgb(picture.rgb, (side, side), eight_bit=picture.bit_depth == 8))
            return
        self._blend = LatentBlend(grid, blend_window(grid, params), 1, config.latent_channels, engine.device)
        if params.tile == "published":
            self._lr = published_input(picture, grid)
        else:
            self._large = LargeImage(picture, grid, params.output_size(*picture.size))

    def tile(self, index: int) -> torch.Tensor:
        """The network's input (1, 3, S, S) of a tile."""
        if self._grid is None:
            return self._lr
        origins = [self._grid.origins[index]]
        return self._grid.cut(self._lr, origins) if self._params.tile == "published" else self._large.tiles(origins)

    def note_again(self, index: int) -> None:
        """A tile was run again in float32."""
        what = "the image" if self._grid is None else f"tile {index + 1}"
        self._warnings.append(run_again(what, self._engine.dtype))

    def complete(self, index: int, output: torch.Tensor) -> None:
        """A tile's latent (Z, p, p), or the decoded image (3, S, S) of an image of one tile."""
        self._waiting[index] = output
        if self._grid is None:
            return
        while self._next in self._waiting:  # in the grid's order, so that batches change nothing
            self._blend.add(self._waiting.pop(self._next)[None], self._grid.origins[self._next])
            self._next += 1

    @property
    def previewed(self) -> bool:
        return self._canvas is not None

    def preview(self, stage: str, index: int, output: torch.Tensor) -> Preview | None:
        """The whole picture, once the latent of tile `index` is output (Z, p, p)."""
        if self._canvas is None:
            return None
        return self._canvas.show(index, self._engine.colours(output, decoded=self._params.previews == "decoded"))

    def finish(self) -> UpscaleResult:
        engine, picture, params, seed = self._engine, self._picture, self._params, self._seed
        if self._grid is None:
            image = self._waiting.pop(0)[None]
            return engine.finished_tile(picture, image, self._lr, params, seed, self.seconds, self._warnings)
        latents = self._blend.result()
        if self._params.tile == "published":
            (result,) = engine.finished_as_published(
                picture, self._grid, self._lr, latents, params, [seed], self.seconds, None, [self._warnings]
            )
            return result
        return engine.finished_image(picture, self._large, latents[0], params, seed, self.seconds, None, self._warnings)


class TileRunner:
    """Runs batches of tiles on an engine's device."""

    def __init__(self, engine: QueuedEngine) -> None:
        self._engine = engine

    def max_batch(self, key: Hashable) -> int:
        return self._engine.largest_batch

    def run(self, units: Sequence[Unit], checkpoint: Checkpoint) -> list[torch.Tensor]:
        jobs: list[tuple[UpscaleJob, int]] = list(units)  # type: ignore[arg-type]
        program = jobs[0][0].key
        request = BatchRequest.joined([job.request.row(index) for job, index in jobs])
        lr = torch.cat([job.tile(index) for job, index in jobs])

        def on_latent(stage: str, latent: torch.Tensor) -> None:
            checkpoint(stage, lambda row: latent[row])

        previewed = any(job.previewed for job, _ in jobs)  # such a batch is no graph: that shows nothing before its end
        outputs, seconds, again = self._engine.run_tiles(
            lr,
            request,
            program.one_tile,
            program.steps,
            program.refine,
            program.scales,
            program.guided,
            checkpoint,
            on_latent if previewed else None,
        )
        for job in {id(job): job for job, _ in jobs}.values():
            for stage, value in seconds.items():
                job.seconds[stage] = job.seconds.get(stage, 0.0) + value
        for job, index in (jobs[row] for row in again):
            job.note_again(index)
        return list(outputs)

    def reclaim(self) -> None:
        self._engine.reclaim()
