"""The public engine: images in, images out."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from varsr_engine.atomic import atomic_writer
from varsr_engine.checkpoint import Checkpoint, TensorCheckpoint, open_checkpoint
from varsr_engine.engine.generation import StageClock
from varsr_engine.engine.large_image import LargeImage
from varsr_engine.engine.params import EngineConfig, UpscaleParams
from varsr_engine.engine.pictures import OnRows, OnTiles
from varsr_engine.engine.planning import UpscalePlan, plan_of
from varsr_engine.engine.queued import QueuedEngine
from varsr_engine.engine.result import UpscaleReport, UpscaleResult
from varsr_engine.engine.scale_loop import OnStage
from varsr_engine.engine.tiling import tile_grid
from varsr_engine.errors import InvalidParamsError, VarsrError
from varsr_engine.imaging import (
    ImageLike,
    Picture,
    losses,
    writable_format,
)
from varsr_engine.imaging.picture_rows import STREAMS, PictureRows
from varsr_engine.packaged import default_model

if TYPE_CHECKING:
    from varsr_engine.model.varsr import VARSR

T = TypeVar("T")


class Engine(QueuedEngine):
    """A loaded model on one device: images in, images out. Calls from several threads take turns.

    `upscale` and its kin run in the caller's thread. `submit`, `aupscale`, `stream` and `astream` put images in a queue
    that one engine thread works off, tiles of several images a batch (`QueuedEngine`).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: EngineConfig | None = None,
        *,
        model_id: str | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__(checkpoint, config or EngineConfig(), on_progress)
        self.model_id = model_id or checkpoint.path.name

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        config: EngineConfig | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        **overrides: Any,
    ) -> Engine:
        """Load a model: a folder, a .safetensors file, a hub id, or the packaged "varsr-mini".

        model None: VARSR_MODEL in the environment, else "varsr-mini".
        overrides: fields of EngineConfig (device, dtype, backend, ...), above VARSR_* in the environment.
        Raises ModelLoadError and its kinds; see `varsr_engine.checkpoint.open_checkpoint`.
        """
        if config is not None and overrides:
            raise InvalidParamsError(f"give either config or overrides, got both (overrides: {', '.join(overrides)})")
        config = config or EngineConfig.resolve(**overrides)
        model = default_model(model)
        checkpoint = open_checkpoint(model, revision=revision, local_files_only=local_files_only)
        return cls(checkpoint, config, model_id=Path(model).name, on_progress=on_progress)

    @classmethod
    def from_model(cls, model: VARSR, *, model_id: str = "model", **overrides: Any) -> Engine:
        """An engine on the weights that a reference model has now, for checking it while it trains."""
        checkpoint = TensorCheckpoint(model.state_dict(), model.config, model_id)
        return cls(checkpoint, EngineConfig.resolve(**overrides), model_id=model_id)

    def upscale(
        self,
        image: ImageLike,
        params: UpscaleParams | None = None,
        /,
        *,
        on_stage: OnStage | None = None,
        on_tiles: OnTiles | None = None,
        **changes: Any,
    ) -> UpscaleResult:
        """Upscale one image: a path, encoded bytes, PIL image, numpy HWC array or torch tensor (see `ImageLike`).

        changes: fields of UpscaleParams, applied to `params`. on_stage is called with the name of each stage that
        ends, on_tiles with (tiles done, tiles in all) of an image of several tiles, before its first and after each
        forward pass. Raises InputError and its kinds for bad images and parameters.
        """
        params = self.params_of(params, changes)
        picture = self.read(image, params)
        return self._upscale_batch([picture], params, [self.seed_of(params)], on_stage, on_tiles)[0]

    def plan(self, size: tuple[int, int], params: UpscaleParams | None = None, /, **changes: Any) -> UpscalePlan:
        """What an image of (width, height) pixels would take: tiles, seconds, bytes. Runs nothing.

        seconds are those of what this engine ran so far, None if it ran nothing.
        """
        params = self.params_of(params, changes)
        output = params.output_size(*size)
        grid = None if params.tile == "off" else tile_grid(self.model_config, output, params.tile_overlap)
        batch = self.memory_plan(min(self.largest_batch, 1 if grid is None else len(grid)))
        return plan_of(self.model_config, output, grid, batch, self._pipeline.window_shape, self._pipeline.pace)

    def upscale_to(
        self,
        image: ImageLike,
        path: str | os.PathLike[str],
        params: UpscaleParams | None = None,
        /,
        *,
        quality: int = 95,
        overwrite: bool = False,
        on_stage: OnStage | None = None,
        on_tiles: OnTiles | None = None,
        on_rows: OnRows | None = None,
        **changes: Any,
    ) -> tuple[UpscaleReport, list[str]]:
        """Upscale one image into a file, completely or not at all; the format comes from the extension.

        A PNG or TIFF of several tiles is written while it is decoded: its pixels are never in memory all at once.
        on_rows is then called with the rows that are written and how many there are; what it raises ends the call.
        Returns how it was upscaled, and what the format could not keep, as sentences. Otherwise as `upscale`; raises
        what `write_picture` raises.
        """
        params = self.params_of(params, changes)
        picture = self.read(image, params)
        grid, format = self.grid_of(picture, params), writable_format(path)
        if grid is None or params.tile == "published" or format not in STREAMS:
            (result,) = self._upscale_batch([picture], params, [self.seed_of(params)], on_stage, on_tiles)
            return result, result.save(path, quality=quality, overwrite=overwrite)
        seed, size = self.seed_of(params), params.output_size(*picture.size)
        with atomic_writer(path, overwrite=overwrite) as file:
            large = LargeImage(picture, grid, size)
            latents, seconds, (warnings,) = self._blended_latent(large.tiles, grid, params, [seed], on_stage, on_tiles)
            clock = StageClock(on_stage, self.device)
            alpha = None if params.alpha == "drop" else picture.alpha
            with PictureRows(file, replace(picture, alpha=alpha), size, format) as written:
                for rows in self._finished(large, latents[0], params, warnings):
                    written.write(rows)
                    if on_rows is not None:
                        on_rows(written.rows, size[1])
            clock("decoder")
        seconds |= clock.seconds
        report = UpscaleReport(**self._report(picture, params, seed, seconds, len(grid), large.seam_score, warnings))
        return report, losses(replace(picture, alpha=alpha), format)

    def upscale_samples(
        self,
        image: ImageLike,
        seeds: Sequence[int],
        params: UpscaleParams | None = None,
        /,
        *,
        on_stage: OnStage | None = None,
        on_tiles: OnTiles | None = None,
        **changes: Any,
    ) -> list[UpscaleResult]:
        """One image with several seeds. Where tokens are the argmax (top_k = 1) only refiner and decoder run again."""
        params = self.params_of(params, changes)
        if not seeds:
            raise InvalidParamsError("seeds must hold at least one seed")
        return self._upscale_batch([self.read(image, params)], params, list(seeds), on_stage, on_tiles)

    def upscale_many(
        self,
        images: Iterable[ImageLike],
        params: UpscaleParams | None = None,
        /,
        *,
        on_error: Literal["raise", "return"] = "raise",
        on_stage: OnStage | None = None,
        on_tiles: OnTiles | None = None,
        **changes: Any,
    ) -> Iterator[UpscaleResult | VarsrError]:
        """Upscale many images lazily, in order, `config.batch_size` at a time; every image has the same parameters.

        Images of one tile share forward passes; an image of several has its own.

        on_error="return" yields an image's error in its place and goes on with the others.
        """
        params = self.params_of(params, changes)
        if on_error not in ("raise", "return"):
            raise InvalidParamsError(f"on_error must be 'raise' or 'return', got {on_error!r}")
        return self._upscale_lazily(images, params, on_error == "return", on_stage, on_tiles)

    def _upscale_lazily(
        self,
        images: Iterable[ImageLike],
        params: UpscaleParams,
        keep_going: bool,
        on_stage: OnStage | None,
        on_tiles: OnTiles | None,
    ) -> Iterator[UpscaleResult | VarsrError]:
        for chunk in batched(images, self.config.images_per_pass):
            outcomes: list[Picture | UpscaleResult | VarsrError] = []
            for image in chunk:
                try:
                    outcomes.append(self.read(image, params))
                except VarsrError as error:
                    if not keep_going:
                        raise
                    outcomes.append(error)
            pictures = [picture for picture in outcomes if isinstance(picture, Picture)]
            results = iter(self._upscale_or_errors(pictures, params, keep_going, on_stage, on_tiles))
            yield from (next(results) if isinstance(o, Picture) else o for o in outcomes)

    def _upscale_or_errors(
        self,
        pictures: list[Picture],
        params: UpscaleParams,
        keep_going: bool,
        on_stage: OnStage | None,
        on_tiles: OnTiles | None,
    ) -> Sequence[UpscaleResult | VarsrError]:
        """A batch's results; where it fails and the rest shall go on, each image is run by itself."""
        if not pictures:
            return []
        try:
            return self._upscale_batch(pictures, params, [self.seed_of(params) for _ in pictures], on_stage, on_tiles)
        except VarsrError as error:
            if not keep_going:
                raise
            if len(pictures) == 1:
                return [error]
            return [r for p in pictures for r in self._upscale_or_errors([p], params, keep_going, on_stage, on_tiles)]


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` items, in order."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


@lru_cache(maxsize=1)
def _shared_engine(model: str) -> Engine:
    return Engine.from_pretrained(model)


def upscale(
    image: ImageLike, params: UpscaleParams | None = None, /, *, model: str | None = None, **changes: Any
) -> UpscaleResult:
    """Upscale one image with a cached engine. The model is `model`, else VARSR_MODEL, else the packaged one."""
    return _shared_engine(default_model(model)).upscale(image, params, **changes)
