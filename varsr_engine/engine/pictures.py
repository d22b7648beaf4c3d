"""The engine's picture level: decoded pictures in, results out, in one tile, in several, or as published."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import varsr_engine
from varsr_engine.engine.fitting import run_in_parts
from varsr_engine.engine.generation import Generation, Sample, StageClock
from varsr_engine.engine.large_image import LargeImage
from varsr_engine.engine.latent_rows import LatentRows
from varsr_engine.engine.memory import decoder_bytes
from varsr_engine.engine.nonfinite import run_again
from varsr_engine.engine.params import MAX_SEED, UpscaleParams
from varsr_engine.engine.presets import with_preset
from varsr_engine.engine.result import UpscaleResult
from varsr_engine.engine.scale_loop import OnStage
from varsr_engine.engine.tensors import TensorEngine
from varsr_engine.engine.tiling import (
    LatentBlend,
    Origin,
    TileGrid,
    gaussian_window,
    ramp_window,
    seam_score,
    tile_grid,
)
from varsr_engine.errors import ImageTooLargeError
from varsr_engine.imaging import ImageLike, Picture, picture_from, resize_alpha, resize_rgb, to_network_input
from varsr_engine.imaging.color import color_fix
from varsr_engine.imaging.picture import FloatArray

OnTiles = Callable[[int, int], None]  # (tiles done, tiles in all)
OnRows = Callable[[int, int], None]  # (rows written, rows in all)


class PictureEngine(TensorEngine):
    """A loaded model on one device, from pictures to results."""

    model_id: str

    def params_of(self, params: UpscaleParams | None, changes: dict[str, Any]) -> UpscaleParams:
        """The settings of a call: `params`, changed, and what their preset chooses for this model."""
        return with_preset((params or UpscaleParams()).replace(**changes), self.model_config)

    def read(self, image: ImageLike, params: UpscaleParams) -> Picture:
        """Decode and check an image, and the size that it would become."""
        self._require_prefix("upscale")
        self.scales_to_guide(params.guided_scales, self.scales_to_run(params.stop_at_scale))
        picture = picture_from(image, self.config.read_limits)
        width, height = params.output_size(*picture.size)
        if width * height > self.config.max_output_pixels or max(width, height) > self.config.max_side:
            raise ImageTooLargeError(
                f"the output would be {width}x{height}; at most {self.config.max_output_pixels} pixels and "
                f"{self.config.max_side} a side are allowed: lower scale, or raise max_output_pixels",
                width=width,
                height=height,
            )
        grid = self.grid_of(picture, params)
        whole = grid is not None and params.tile == "published"
        if whole and decoder_bytes(self.model_config, width * height, 4) > self.config.max_decoder_bytes:
            needed = decoder_bytes(self.model_config, width * height, 4) / 1024**3
            raise ImageTooLargeError(
                f"decoding an output of {width}x{height} in one piece takes about {needed:.1f} GiB; at most "
                f"{self.config.max_decoder_bytes / 1024**3:.1f} are allowed: lower scale, set tile to auto, or raise "
                "max_decoder_bytes",
                width=width,
                height=height,
            )
        return picture

    def grid_of(self, picture: Picture, params: UpscaleParams) -> TileGrid | None:
        """The tiles of a picture's output; None if it is one tile, or shall be."""
        if params.tile == "off":
            return None
        return tile_grid(self.model_config, params.output_size(*picture.size), params.tile_overlap)

    def stages(self, params: UpscaleParams) -> list[str]:
        """The names of the stages of an image, in order; each tile of several has all but the last."""
        return self._pipeline.stages(True, params.refiner == "on", self.scales_to_run(params.stop_at_scale))

    @staticmethod
    def seed_of(params: UpscaleParams) -> int:
        return secrets.randbelow(MAX_SEED + 1) if params.seed is None else params.seed

    def _upscale_batch(
        self,
        pictures: list[Picture],
        params: UpscaleParams,
        seeds: list[int],
        on_stage: OnStage | None,
        on_tiles: OnTiles | None = None,
    ) -> list[UpscaleResult]:
        """As many seeds as pictures, or several for one picture. Pictures of one tile share a forward pass."""
        grids = [self.grid_of(picture, params) for picture in pictures]
        if len(pictures) == 1:
            if grids[0] is None:
                return self._upscale_one_tile(pictures, params, seeds, on_stage)
            return self._upscale_tiles(pictures[0], grids[0], params, seeds, on_stage, on_tiles)
        small = [i for i, grid in enumerate(grids) if grid is None]
        results: dict[int, UpscaleResult] = {}
        if small:
            chosen = [pictures[i] for i in small], params, [seeds[i] for i in small]
            results.update(zip(small, self._upscale_one_tile(*chosen, on_stage), strict=True))
        for i, grid in enumerate(grids):
            if grid is not None:
                (results[i],) = self._upscale_tiles(pictures[i], grid, params, [seeds[i]], on_stage, on_tiles)
        return [results[i] for i in range(len(pictures))]

    def _upscale_one_tile(
        self, pictures: list[Picture], params: UpscaleParams, seeds: list[int], on_stage: OnStage | None
    ) -> list[UpscaleResult]:
        """One forward pass, each picture resized to the tile and its result to the output; more if memory fails."""
        side, several = self.model_config.image_side, len(pictures) > 1
        tiles = [resize_rgb(p.rgb, (side, side), eight_bit=p.bit_depth == 8) for p in pictures]
        lr = torch.cat([to_network_input(tile) for tile in tiles])

        def run(start: int, end: int) -> Generation:
            return self.generate(
                lr[start:end] if several else lr,
                seed=seeds[start:end],
                num_images_per_input=1 if several else end - start,
                guidance_scale=params.cfg,
                steps=params.steps,
                refine=params.refiner == "on",
                stop_at_scale=params.stop_at_scale,
                guided_scales=params.guided_scales,
                on_stage=on_stage,
                **self._settings(params),
            )

        results = []
        most = len(seeds) if self.config.memory_budget is None else self.largest_batch
        for start, end, generation in run_in_parts(run, len(seeds), most, self.reclaim):
            images, seconds = generation.images.cpu(), generation.seconds
            for row, (image, seed) in enumerate(zip(images, seeds[start:end], strict=True)):
                source = start + row if several else 0
                own = lr[source : source + 1]
                warnings = [run_again("the image", self.dtype)] if row in generation.again else []
                results.append(self.finished_tile(pictures[source], image[None], own, params, seed, seconds, warnings))
        return results

    def finished_tile(
        self,
        picture: Picture,
        image: torch.Tensor,
        lr: torch.Tensor,
        params: UpscaleParams,
        seed: int,
        seconds: dict[str, float],
        warnings: Sequence[str] = (),
    ) -> UpscaleResult:
        """The result of an image of one tile from its pixels (1, 3, S, S) in [0, 1] and its input in [-1, 1]."""
        fixed = self._faithful(image, (lr + 1) / 2, params)[0]
        rgb = resize_rgb(to_array(fixed), params.output_size(*picture.size))
        return self._result(picture, rgb, params, seed, seconds, warnings=warnings)

    def _upscale_tiles(
        self,
        picture: Picture,
        grid: TileGrid,
        params: UpscaleParams,
        seeds: list[int],
        on_stage: OnStage | None,
        on_tiles: OnTiles | None,
    ) -> list[UpscaleResult]:
        """A picture of several tiles: their latents blended, decoded in windows, finished in bands."""
        if params.tile == "published":
            return self._upscale_as_published(picture, grid, params, seeds, on_stage, on_tiles)
        image = LargeImage(picture, grid, params.output_size(*picture.size))
        latents, seconds, warnings = self._blended_latent(image.tiles, grid, params, seeds, on_stage, on_tiles)
        return [
            self.finished_image(picture, image, latent, params, seed, seconds, on_stage, own)
            for latent, seed, own in zip(latents, seeds, warnings, strict=True)
        ]

    def finished_image(
        self,
        picture: Picture,
        image: LargeImage,
        latent: LatentRows,
        params: UpscaleParams,
        seed: int,
        seconds: dict[str, float],
        on_stage: OnStage | None,
        warnings: Sequence[str] = (),
    ) -> UpscaleResult:
        """The result of an image of several tiles from its whole latent."""
        width, height = image.size
        rgb, top = np.empty((height, width, 3), np.float32), 0
        clock = StageClock(on_stage, self.device)
        warnings = list(warnings)
        for rows in self._finished(image, latent, params, warnings):
            rgb[top : top + len(rows)], top = rows, top + len(rows)
        clock("decoder")
        seconds = seconds | clock.seconds
        return self._result(picture, rgb, params, seed, seconds, len(image.grid), image.seam_score, warnings)

    def _finished(
        self, image: LargeImage, latent: LatentRows, params: UpscaleParams, warnings: list[str]
    ) -> Iterator[FloatArray]:
        """The output's rows (h, W, 3), from top to bottom. What there is to say of them joins the warnings."""
        share = self.model_config.fidelity if params.fidelity is None else params.fidelity
        color = params.color_fix or self.model_config.color_fix
        window = run_again("a part of the picture", self.dtype)
        decoded = self._pipeline.decode_in_bands(latent, lambda: warnings.append(window))
        bands = image.finish(decoded, color, share)
        while True:
            with self._running("decoding a part of an image"):  # not across a yield: writing a band needs no device
                rows = next(bands, None)
            if rows is None:
                return
            yield rows

    def _upscale_as_published(
        self,
        picture: Picture,
        grid: TileGrid,
        params: UpscaleParams,
        seeds: list[int],
        on_stage: OnStage | None,
        on_tiles: OnTiles | None,
    ) -> list[UpscaleResult]:
        """Section 10 of the specification: the whole latent decoded at once, its image resized and corrected whole."""
        lr = published_input(picture, grid)
        latents, seconds, warnings = self._blended_latent(
            lambda origins: grid.cut(lr, origins), grid, params, seeds, on_stage, on_tiles
        )
        return self.finished_as_published(picture, grid, lr, latents, params, seeds, seconds, on_stage, warnings)

    def finished_as_published(
        self,
        picture: Picture,
        grid: TileGrid,
        lr: torch.Tensor,
        latents: Sequence[LatentRows],
        params: UpscaleParams,
        seeds: list[int],
        seconds: dict[str, float],
        on_stage: OnStage | None,
        warnings: Sequence[list[str]],
    ) -> list[UpscaleResult]:
        """The results of one picture from its input (3, H, W) and its latents, one a seed."""
        size, again = params.output_size(*picture.size), list[int]()
        clock = StageClock(on_stage, self.device)
        with self._running("decoding an image of this size at once; set tile to auto"):
            whole = torch.stack([latent.whole() for latent in latents]).to(self.device)
            images = self._pipeline.decode(whole, again).cpu()
        clock("decoder")
        seconds = seconds | clock.seconds
        style = torch.from_numpy(resize_rgb(picture.rgb, size, picture.bit_depth == 8)).permute(2, 0, 1)[None]
        results = []
        for row, (image, seed) in enumerate(zip(images, seeds, strict=True)):
            seams = seam_score(image, (lr + 1) / 2, grid)
            resized = torch.from_numpy(resize_rgb(to_array(image), size)).permute(2, 0, 1)[None]
            rgb = to_array(self._faithful(resized, style, params)[0])
            own = [*warnings[row], *([run_again("the decoder", self.dtype)] if row in again else [])]
            results.append(self._result(picture, rgb, params, seed, seconds, len(grid), seams, own))
        return results

    def _blended_latent(
        self,
        cut: Callable[[list[Origin]], torch.Tensor],
        grid: TileGrid,
        params: UpscaleParams,
        seeds: list[int],
        on_stage: OnStage | None,
        on_tiles: OnTiles | None,
    ) -> tuple[list[LatentRows], dict[str, float], list[list[str]]]:
        """The whole image's latent, one a seed, the seconds of each stage, and warnings, a list a seed.

        Several tiles share a forward pass, fewer from the first on that runs out of memory.

        cut: the network's input (n, 3, S, S) of some tiles.
        """
        config, times = self.model_config, len(seeds)
        most = max(1, self.largest_batch // times) if self.config.batch_size is None else self.largest_batch
        guidance = config.guidance_scale_tiled if params.cfg is None else params.cfg
        settings, refine = self._settings(params), params.refiner == "on"
        scales = self.scales_to_run(params.stop_at_scale)
        guided = self.scales_to_guide(params.guided_scales, scales)
        blend = LatentBlend(grid, blend_window(grid, params), times, config.latent_channels, self.device)
        seconds: dict[str, float] = {}
        warnings: list[list[str]] = [[] for _ in seeds]
        if on_tiles is not None:
            on_tiles(0, len(grid))

        def run(start: int, end: int) -> Sample:
            origins = grid.origins[start:end]
            request, drawn = self._request(
                len(origins), times, origins=origins, seed=seeds * len(origins), guidance_scale=guidance, **settings
            )
            with self._running(f"a batch of {len(origins)} tiles", len(origins)):
                return self._pipeline.sample(
                    cut(origins).to(self.device),
                    request,
                    seeds=drawn,
                    steps=params.steps,
                    refine=refine,
                    scales=scales,
                    guided=guided,
                    on_stage=on_stage,
                )

        for start, end, sample in run_in_parts(run, len(grid), most, self.reclaim):
            for origin, tile in zip(grid.origins[start:end], sample.latent.unflatten(0, (-1, times)), strict=True):
                blend.add(tile, origin)
            for stage, value in sample.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + value
            for row in sample.again:
                warnings[row % times].append(run_again(f"tile {start + row // times + 1}", self.dtype))
            if on_tiles is not None:
                on_tiles(end, len(grid))
        return blend.result(), seconds, warnings

    def _faithful(self, image: torch.Tensor, source: torch.Tensor, params: UpscaleParams) -> torch.Tensor:
        """The image with the resized input's colours, and the share of the input itself that is asked for."""
        fixed = color_fix(params.color_fix or self.model_config.color_fix, image, source)
        share = self.model_config.fidelity if params.fidelity is None else params.fidelity
        return fixed if share == 0 else torch.lerp(fixed, source, share)

    @staticmethod
    def _settings(params: UpscaleParams) -> dict[str, Any]:
        """What a request takes from the parameters as it is, the same for every tile."""
        return {
            "labels": params.label,
            "top_k": params.top_k,
            "top_p": params.top_p,
            "temperature": params.temperature,
            "refiner_temperature": params.refiner_temperature,
        }

    def _result(
        self,
        source: Picture,
        rgb: FloatArray,
        params: UpscaleParams,
        seed: int,
        seconds: dict[str, float],
        tiles: int = 1,
        seams: float | None = None,
        warnings: Sequence[str] = (),
    ) -> UpscaleResult:
        """The output with the source's alpha and metadata."""
        size = params.output_size(*source.size)
        alpha = None if source.alpha is None or params.alpha == "drop" else resize_alpha(source.alpha, size)
        picture = replace(source, rgb=rgb, alpha=alpha)
        return UpscaleResult(picture=picture, **self._report(source, params, seed, seconds, tiles, seams, warnings))

    def _report(
        self,
        source: Picture,
        params: UpscaleParams,
        seed: int,
        seconds: dict[str, float],
        tiles: int,
        seams: float | None,
        warnings: Sequence[str],
    ) -> dict[str, Any]:
        """The fields of an `UpscaleReport`."""
        return {
            "size": params.output_size(*source.size),
            "source_size": source.size,
            "seed": seed,
            "model_id": self.model_id,
            "engine_version": varsr_engine.__version__,
            "numerics": self.fingerprint,
            "seconds": dict(seconds),
            "warnings": tuple(warnings),
            "tiles": tiles,
            "seam_score": seams,
            "stop_at_scale": self.scales_to_run(params.stop_at_scale),
        }


def blend_window(grid: TileGrid, params: UpscaleParams) -> torch.Tensor:
    """What a tile's cells count for, (p, p)."""
    return gaussian_window(grid.side) if params.tile == "published" else ramp_window(grid.side, grid.overlap)


def published_input(picture: Picture, grid: TileGrid) -> torch.Tensor:
    """The whole image's input (3, H, W) in [-1, 1], an 8-bit picture resized in 8 bits."""
    return to_network_input(resize_rgb(picture.rgb, grid.image_size, picture.bit_depth == 8))[0]


def to_array(image: torch.Tensor) -> FloatArray:
    """(3, H, W) → (H, W, 3), contiguous."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())
