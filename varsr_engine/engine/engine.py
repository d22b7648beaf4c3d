"""The public engine: images in, images out."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch

import varsr_engine
from varsr_engine.checkpoint import Checkpoint, TensorCheckpoint, open_checkpoint
from varsr_engine.config import ModelConfig
from varsr_engine.demo import DEMO_MODEL, DEMO_NOTICE, demo_checkpoint
from varsr_engine.dispatch import check_backend, use_backend
from varsr_engine.engine.device import resolve_device, resolve_dtype
from varsr_engine.engine.generation import Generation, Pipeline
from varsr_engine.engine.params import MAX_SEED, EngineConfig, UpscaleParams
from varsr_engine.engine.request import BatchRequest, PerImage, batch_request, per_image
from varsr_engine.engine.result import UpscaleResult
from varsr_engine.engine.scale_loop import OnStage
from varsr_engine.errors import (
    ImageTooLargeError,
    InvalidImageError,
    InvalidParamsError,
    ModelNotFoundError,
    ResourceExhaustedError,
    VarsrError,
)
from varsr_engine.imaging import (
    ImageLike,
    Picture,
    ReadLimits,
    picture_from,
    resize_alpha,
    resize_rgb,
    to_network_input,
)
from varsr_engine.imaging.color import color_fix

if TYPE_CHECKING:
    from varsr_engine.model.varsr import VARSR

T = TypeVar("T")


class Engine:
    """A loaded model on one device. Not thread-safe: one call at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: EngineConfig | None = None,
        *,
        model_id: str | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.config = config or EngineConfig()
        self.model_id = model_id or checkpoint.path.name
        self.device = resolve_device(self.config.device)
        self.dtype = resolve_dtype(self.config.dtype, self.device)
        self._backend = check_backend(self.config.backend)
        self._limits = ReadLimits(self.config.max_input_pixels, self.config.max_input_bytes, self.config.max_side)
        self._pipeline = Pipeline(checkpoint, self.device, self.dtype, on_progress)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        config: EngineConfig | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        **overrides: Any,
    ) -> Engine:
        """Load a model from a folder, a .safetensors file, a hub id, or "demo" (untrained, for trying things out).

        overrides: fields of EngineConfig (device, dtype, backend, ...), above VARSR_* in the environment.
        Raises ModelLoadError and its kinds; see `varsr_engine.checkpoint.open_checkpoint`.
        """
        if config is not None and overrides:
            raise InvalidParamsError(f"give either config or overrides, got both (overrides: {', '.join(overrides)})")
        config = config or EngineConfig.resolve(**overrides)
        if str(model) == DEMO_MODEL:
            checkpoint: Checkpoint = demo_checkpoint()
        else:
            checkpoint = open_checkpoint(model, revision=revision, local_files_only=local_files_only)
        return cls(checkpoint, config, model_id=Path(model).name, on_progress=on_progress)

    @classmethod
    def from_model(cls, model: VARSR, *, model_id: str = "model", **overrides: Any) -> Engine:
        """An engine on the weights that a reference model has now, for checking it while it trains."""
        checkpoint = TensorCheckpoint(model.state_dict(), model.config, model_id)
        return cls(checkpoint, EngineConfig.resolve(**overrides), model_id=model_id)

    @property
    def model_config(self) -> ModelConfig:
        return self._pipeline.config

    # --- images ------------------------------------------------------------------------------------------

    def upscale(
        self,
        image: ImageLike,
        params: UpscaleParams | None = None,
        /,
        *,
        on_stage: OnStage | None = None,
        **changes: Any,
    ) -> UpscaleResult:
        """Upscale one image: a path, encoded bytes, PIL image, numpy HWC array or torch tensor (see `ImageLike`).

        changes: fields of UpscaleParams, applied to `params`. on_stage is called with the name of each stage that
        ends. Raises InputError and its kinds for bad images and parameters.
        """
        params = (params or UpscaleParams()).replace(**changes)
        return self._upscale_batch([self._read(image, params)], params, [self._seed(params)], on_stage)[0]

    def upscale_samples(
        self,
        image: ImageLike,
        seeds: Sequence[int],
        params: UpscaleParams | None = None,
        /,
        *,
        on_stage: OnStage | None = None,
        **changes: Any,
    ) -> list[UpscaleResult]:
        """One image with several seeds. Where tokens are the argmax (top_k = 1) only refiner and decoder run again."""
        params = (params or UpscaleParams()).replace(**changes)
        if not seeds:
            raise InvalidParamsError("seeds must hold at least one seed")
        return self._upscale_batch([self._read(image, params)], params, list(seeds), on_stage)

    def upscale_many(
        self,
        images: Iterable[ImageLike],
        params: UpscaleParams | None = None,
        /,
        *,
        on_error: Literal["raise", "return"] = "raise",
        on_stage: OnStage | None = None,
        **changes: Any,
    ) -> Iterator[UpscaleResult | VarsrError]:
        """Upscale many images lazily, in order, `config.batch_size` at a time; every image has the same parameters.

        on_error="return" yields an image's error in its place and goes on with the others.
        """
        params = (params or UpscaleParams()).replace(**changes)
        if on_error not in ("raise", "return"):
            raise InvalidParamsError(f"on_error must be 'raise' or 'return', got {on_error!r}")
        return self._upscale_lazily(images, params, on_error == "return", on_stage)

    def _upscale_lazily(
        self, images: Iterable[ImageLike], params: UpscaleParams, keep_going: bool, on_stage: OnStage | None
    ) -> Iterator[UpscaleResult | VarsrError]:
        for chunk in batched(images, self.config.batch_size):
            outcomes: list[Picture | UpscaleResult | VarsrError] = []
            for image in chunk:
                try:
                    outcomes.append(self._read(image, params))
                except VarsrError as error:
                    if not keep_going:
                        raise
                    outcomes.append(error)
            pictures = [picture for picture in outcomes if isinstance(picture, Picture)]
            results = iter(self._upscale_or_errors(pictures, params, keep_going, on_stage))
            yield from (next(results) if isinstance(o, Picture) else o for o in outcomes)

    def _upscale_or_errors(
        self, pictures: list[Picture], params: UpscaleParams, keep_going: bool, on_stage: OnStage | None
    ) -> Sequence[UpscaleResult | VarsrError]:
        """A batch's results; where it fails and the rest shall go on, each image is run by itself."""
        if not pictures:
            return []
        try:
            return self._upscale_batch(pictures, params, [self._seed(params) for _ in pictures], on_stage)
        except VarsrError as error:
            if not keep_going:
                raise
            if len(pictures) == 1:
                return [error]
            return [r for p in pictures for r in self._upscale_or_errors([p], params, keep_going, on_stage)]

    def _read(self, image: ImageLike, params: UpscaleParams) -> Picture:
        """Decode and check an image, and the size that it would become."""
        self._require_prefix("upscale")
        picture = picture_from(image, self._limits)
        width, height = params.output_size(*picture.size)
        if width * height > self.config.max_output_pixels or max(width, height) > self.config.max_side:
            raise ImageTooLargeError(
                f"the output would be {width}x{height}; at most {self.config.max_output_pixels} pixels and "
                f"{self.config.max_side} a side are allowed: lower scale, or raise max_output_pixels",
                width=width,
                height=height,
            )
        return picture

    @staticmethod
    def _seed(params: UpscaleParams) -> int:
        return secrets.randbelow(MAX_SEED + 1) if params.seed is None else params.seed

    def _upscale_batch(
        self, pictures: list[Picture], params: UpscaleParams, seeds: list[int], on_stage: OnStage | None
    ) -> list[UpscaleResult]:
        """One forward pass. As many seeds as pictures, or several for one picture."""
        side = self.model_config.image_side
        tiles = [resize_rgb(p.rgb, (side, side), eight_bit=p.bit_depth == 8) for p in pictures]
        lr = torch.cat([to_network_input(tile) for tile in tiles])
        generation = self.generate(
            lr,
            labels=params.label,
            guidance_scale=params.cfg,
            seed=seeds,
            top_k=params.top_k,
            top_p=params.top_p,
            temperature=params.temperature,
            num_images_per_input=len(seeds) // len(pictures),
            steps=params.steps,
            refine=params.refiner == "on",
            on_stage=on_stage,
        )
        style = (lr + 1) / 2
        results = []
        for i, (image, seed) in enumerate(zip(generation.images.cpu(), seeds, strict=True)):
            source = i if len(pictures) == len(seeds) else 0
            fixed = color_fix(params.color_fix, image[None], style[source : source + 1])[0]
            picture = self._finish(pictures[source], fixed, params)
            results.append(self._result(picture, pictures[source], seed, generation))
        return results

    def _finish(self, source: Picture, image: torch.Tensor, params: UpscaleParams) -> Picture:
        """The network's square (3, S, S) as the source's picture: its shape, alpha and metadata."""
        size = params.output_size(*source.size)
        rgb = resize_rgb(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), size)
        alpha = None if source.alpha is None or params.alpha == "drop" else resize_alpha(source.alpha, size)
        return replace(source, rgb=rgb, alpha=alpha)

    def _result(self, picture: Picture, source: Picture, seed: int, generation: Generation) -> UpscaleResult:
        return UpscaleResult(
            picture=picture,
            source_size=source.size,
            seed=seed,
            model_id=self.model_id,
            engine_version=varsr_engine.__version__,
            seconds=dict(generation.seconds),
            warnings=(DEMO_NOTICE,) if self.model_id == DEMO_MODEL else (),
        )

    # --- tensors -----------------------------------------------------------------------------------------

    def generate(
        self,
        lr: torch.Tensor,
        *,
        labels: PerImage = 0,
        guidance_scale: PerImage | None = None,
        seed: PerImage = 0,
        noise: torch.Tensor | None = None,
        top_k: PerImage | None = None,
        top_p: PerImage | None = None,
        temperature: PerImage = 1.0,
        num_images_per_input: int = 1,
        steps: int | None = None,
        refine: bool = True,
        trace: bool = False,
        on_stage: OnStage | None = None,
    ) -> Generation:
        """The network on prepared inputs: lr (B, 3, 16p, 16p) in [-1, 1] to images (B * n, 3, 16p, 16p) in [0, 1].

        labels, guidance_scale, seed, top_k, top_p and temperature: one value, or one an image; seed also one an
        output, ordered input by input (one value s an input stands for s, s+1, ..., s+n-1).
        noise (steps + 1, B * n, p^2, Z) replaces the refiner's seeded noise. refine=False leaves the refiner out.
        trace=True also returns tokens, logits and f_hat of each scale, prefix, refiner input, residual and latent.
        """
        self._require_prefix("generate")
        side = self.model_config.image_side
        if lr.ndim != 4 or tuple(lr.shape[1:]) != (3, side, side) or lr.shape[0] == 0:
            raise InvalidParamsError(f"lr must be (B, 3, {side}, {side}) with B > 0, got {tuple(lr.shape)}")
        if not lr.is_floating_point():
            raise InvalidParamsError(f"lr must be floating point in [-1, 1], got {lr.dtype}")
        lr = lr.to(self.device, torch.float32)
        if not torch.isfinite(lr).all():
            raise InvalidImageError("lr holds NaN or infinity; expected values in [-1, 1]")
        if lr.abs().max() > 1 + 1e-3:
            raise InvalidImageError(f"lr must lie in [-1, 1], got values up to {lr.abs().max().item():.4g}")
        request, seeds = self._request(
            lr.shape[0], num_images_per_input, labels, guidance_scale, seed, top_k, top_p, temperature
        )
        return self._run(lr, request, seeds, noise=noise, steps=steps, refine=refine, trace=trace, on_stage=on_stage)

    def class_to_image(
        self,
        labels: int | Sequence[int],
        *,
        guidance_scale: PerImage | None = None,
        seed: PerImage = 0,
        noise: torch.Tensor | None = None,
        top_k: PerImage | None = None,
        top_p: PerImage | None = None,
        temperature: PerImage = 1.0,
        steps: int | None = None,
        refine: bool = True,
        trace: bool = False,
        on_stage: OnStage | None = None,
    ) -> Generation:
        """Images of classes, from the class-to-image prior. Arguments as `generate`; each label is one image."""
        if self.model_config.has_prefix:
            raise InvalidParamsError("class_to_image needs the class-to-image prior; this model upscales images")
        labels = [labels] if isinstance(labels, int) else list(labels)
        if not labels:
            raise InvalidParamsError("labels must hold at least one class")
        request, seeds = self._request(len(labels), 1, labels, guidance_scale, seed, top_k, top_p, temperature)
        return self._run(None, request, seeds, noise=noise, steps=steps, refine=refine, trace=trace, on_stage=on_stage)

    def _require_prefix(self, method: str) -> None:
        if not self.model_config.has_prefix:
            raise InvalidParamsError(f"{method} needs a super-resolution model; this is the class-to-image prior")

    def _request(
        self,
        batch: int,
        times: int,
        labels: PerImage,
        guidance_scale: PerImage | None,
        seed: PerImage,
        top_k: PerImage | None,
        top_p: PerImage | None,
        temperature: PerImage,
    ) -> tuple[BatchRequest, torch.Tensor]:
        """Validated settings of B inputs, and the seeds of all B * times outputs."""
        if not isinstance(times, int) or times < 1:
            raise InvalidParamsError(f"num_images_per_input must be a positive integer, got {times!r}")
        count = len(seed) if isinstance(seed, (list, tuple, range, torch.Tensor)) else 1
        if count == batch * times:
            seeds = per_image("seed", seed, batch * times, 0, MAX_SEED, integer=True)
        else:
            first = per_image("seed", seed, batch, 0, MAX_SEED - times, integer=True)
            seeds = [s + i for s in first for i in range(times)]
        request = batch_request(
            self.model_config,
            batch,
            self.device,
            labels=labels,
            guidance_scale=guidance_scale,
            seeds=seeds[::times],
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
        )
        return request, torch.tensor(seeds, dtype=torch.int64, device=self.device)

    def _run(
        self,
        lr: torch.Tensor | None,
        request: BatchRequest,
        seeds: torch.Tensor,
        *,
        noise: torch.Tensor | None,
        steps: int | None,
        refine: bool,
        trace: bool,
        on_stage: OnStage | None,
    ) -> Generation:
        config = self.model_config
        if noise is not None:
            steps_drawn = (config.refiner_steps if steps is None else steps) + 1
            shape = (steps_drawn, seeds.shape[0], config.latent_side**2, config.latent_channels)
            if tuple(noise.shape) != shape:
                raise InvalidParamsError(
                    f"noise must be (steps + 1, B * n, p^2, Z) = {shape}, got {tuple(noise.shape)}"
                )
            noise = noise.to(self.device, torch.float32)
        try:
            with use_backend(self._backend) if self._backend else contextlib.nullcontext():
                return self._pipeline.generate(
                    lr, request, seeds=seeds, steps=steps, refine=refine, noise=noise, trace=trace, on_stage=on_stage
                )
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise ResourceExhaustedError(
                f"not enough memory for a batch of {request.batch}: lower batch_size ({error})"
            ) from error


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
    """Upscale one image with a cached engine. The model is `model`, else VARSR_MODEL in the environment."""
    model = model or os.environ.get("VARSR_MODEL")
    if not model:
        raise ModelNotFoundError("no model given: pass model=... or set VARSR_MODEL to a folder, file or hub id")
    return _shared_engine(str(model)).upscale(image, params, **changes)
