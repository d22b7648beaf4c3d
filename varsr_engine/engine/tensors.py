"""The engine's tensor level: prepared inputs in, images or latents out, every setting validated."""

from __future__ import annotations

import contextlib
import gc
import logging
import threading
from collections.abc import Callable, Iterator, Sequence

import torch

from varsr_engine.checkpoint import Checkpoint
from varsr_engine.dispatch import active_backend, check_backend, use_backend
from varsr_engine.engine.device import resolve_device, resolve_dtype
from varsr_engine.engine.fingerprint import fingerprint, weights_digest
from varsr_engine.engine.generation import Generation, Pipeline
from varsr_engine.engine.graphs import graph_sizes
from varsr_engine.engine.invariance import BatchInvariantPipeline
from varsr_engine.engine.memory import RESERVE, MemoryPlan, available_bytes, largest_batch, memory_plan
from varsr_engine.engine.params import MAX_SEED, EngineConfig, is_integer
from varsr_engine.engine.preview import PreviewMap
from varsr_engine.engine.preview_fit import PICTURES_AT_FIRST_USE, fit_preview_map
from varsr_engine.engine.request import BatchRequest, PerImage, batch_request, per_image
from varsr_engine.engine.scale_loop import OnStage
from varsr_engine.engine.tiling import tiles_per_pass
from varsr_engine.errors import InvalidImageError, InvalidParamsError, ResourceExhaustedError

logger = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]
LARGEST_BATCH = 8  # images, or tiles; larger batches gain next to nothing (docs/architecture.md)


class TensorEngine:
    """A loaded model on one device, from tensors to tensors. Calls from several threads take turns."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: EngineConfig,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.config = config
        self.model_config, self._shapes = checkpoint.config, checkpoint.shapes
        self._turn = threading.RLock()  # of the device: threads take turns
        self.device = resolve_device(config.device)
        self.dtype = resolve_dtype(config.dtype, self.device)
        self._backend, attention = check_backend(config.backend), check_backend(config.attention)
        self._fp8 = config.fp8_switches(checkpoint.config)
        self._preview_map = PreviewMap.of(checkpoint)
        self.offloads = self._must_offload()
        self.largest_batch = self._choose_batch()
        largest = self.largest_batch if config.cuda_graphs and not self.offloads else None
        with self._on_backend():  # weights take the form that it multiplies with
            pipeline = BatchInvariantPipeline if config.batch_invariant else Pipeline
            self._pipeline = pipeline(
                checkpoint,
                self.device,
                self.dtype,
                on_progress,
                largest_graph=largest,
                attention=attention,
                fp8=self._fp8,
                memory_budget=config.memory_budget,
                offload=self.offloads,
            )
        self._weights_digest = weights_digest(checkpoint)  # now: the file may be another when it is asked for

    @property
    def fingerprint(self) -> str:
        """The numerics of this engine's pixels, such as fast-cpu-fp32-... (`engine/fingerprint.py`)."""
        backend = self._backend or active_backend()
        return fingerprint(self.config, self.device, self.dtype, backend, self._weights_digest)

    def memory_plan(self, batch: int) -> MemoryPlan:
        """What a batch of that many images takes on a GPU, told without taking it."""
        return memory_plan(self.model_config, self._shapes, batch, self.dtype, self._fp8, self.offloads)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H * f, W * f) in [0, 1] of latents (N, Z, H, W); f: the model's downsampling."""
        with self._running("decoding a latent"):
            return self._pipeline.decode(latent.to(self.device))

    @property
    def preview_map(self) -> PreviewMap:
        """From latent cells to colours: the weights' own. Where they bring none it is fitted now, which takes about as
        long as two tiles and decoding each of their scales; `varsr convert --fit-preview` does it beforehand."""
        if self._preview_map is None:
            self._preview_map = fit_preview_map(self, PICTURES_AT_FIRST_USE).map
        return self._preview_map

    def colours(self, latent: torch.Tensor, *, decoded: bool) -> torch.Tensor:
        """How a tile's latent (Z, p, p) looks, (3, h, w) in [0, 1]: through the decoder, or each cell by itself."""
        return self.decode(latent[None])[0] if decoded else self.preview_map.colours(latent)

    @property
    def captures_graphs(self) -> bool:
        """Whether batches run as CUDA graphs, whose first use takes longer: see `warmup`."""
        return self.device.type == "cuda" and self.config.cuda_graphs and not self.offloads

    def warmup(self, batch_sizes: Sequence[int] | None = None, on_progress: OnProgress | None = None) -> None:
        """Load every part, and on a GPU compile the kernels and capture the graphs, so that no request waits for it.

        batch_sizes: of the graphs, all sizes up to the largest if None. on_progress is called with (done, in all).
        Kernels compiled once are read from Triton's cache on disk by later processes.
        """
        self._require_prefix("warmup")
        every = graph_sizes(self.largest_batch) if self.captures_graphs else [1]
        sizes = sorted(batch_sizes or every, reverse=True)
        side = self.model_config.image_side
        if self.captures_graphs:
            self._require_memory(max(sizes))
        for done, size in enumerate(sizes):
            if on_progress is not None:
                on_progress(done, len(sizes))
            self.generate(torch.zeros(size, 3, side, side))
        if on_progress is not None:
            on_progress(len(sizes), len(sizes))

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
        refiner_temperature: PerImage | None = None,
        num_images_per_input: int = 1,
        steps: int | None = None,
        refine: bool = True,
        stop_at_scale: int | None = None,
        guided_scales: int | None = None,
        trace: bool = False,
        on_stage: OnStage | None = None,
    ) -> Generation:
        """The network on prepared inputs: lr (B, 3, S, S) in [-1, 1] to images (B * n, 3, S, S) in [0, 1].

        S is the side of the model's tile. labels, guidance_scale, seed, top_k, top_p, temperature (of the tokens) and
        refiner_temperature: one value, or one an image; seed also one an output, ordered input by input (one value s
        an input stands for s, s+1, ..., s+n-1). refiner_temperature multiplies all noise of the refiner.
        noise (steps + 1, B * n, p^2, Z) replaces the refiner's seeded noise. refine=False leaves the refiner out.
        stop_at_scale: how many scales run; fewer than the model's are a draft, without the refiner.
        guided_scales: how many of the first scales have guidance; fewer than run are faster and not exact.
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
            lr.shape[0],
            num_images_per_input,
            labels=labels,
            guidance_scale=guidance_scale,
            seed=seed,
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            refiner_temperature=refiner_temperature,
        )
        scales = self.scales_to_run(stop_at_scale)
        guided = self.scales_to_guide(guided_scales, scales)
        return self._run(lr, request, seeds, noise, steps, refine, scales, guided, trace, on_stage)

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
        refiner_temperature: PerImage | None = None,
        steps: int | None = None,
        refine: bool = True,
        stop_at_scale: int | None = None,
        guided_scales: int | None = None,
        trace: bool = False,
        on_stage: OnStage | None = None,
    ) -> Generation:
        """Images of classes, from the class-to-image prior. Arguments as `generate`; each label is one image."""
        if self.model_config.has_prefix:
            raise InvalidParamsError("class_to_image needs the class-to-image prior; this model upscales images")
        labels = [labels] if isinstance(labels, int) else list(labels)
        if not labels:
            raise InvalidParamsError("labels must hold at least one class")
        request, seeds = self._request(
            len(labels),
            1,
            labels=labels,
            guidance_scale=guidance_scale,
            seed=seed,
            top_k=top_k,
            top_p=top_p,
            temperature=temperature,
            refiner_temperature=refiner_temperature,
        )
        scales = self.scales_to_run(stop_at_scale)
        guided = self.scales_to_guide(guided_scales, scales)
        return self._run(None, request, seeds, noise, steps, refine, scales, guided, trace, on_stage)

    def scales_to_run(self, stop_at_scale: int | None) -> int | None:
        """How many scales a draft runs; None: all. Raises InvalidParamsError for more than the model has."""
        count = self.model_config.num_scales
        if stop_at_scale is not None and not is_integer(stop_at_scale, 1, count):
            expected = f"a number of scales in [1, {count}] for this model, {count} being all"
            raise InvalidParamsError(f"stop_at_scale must be {expected}, got {stop_at_scale!r}")
        return None if stop_at_scale == count else stop_at_scale

    def scales_to_guide(self, guided_scales: int | None, scales: int | None = None) -> int | None:
        """How many of the first scales need the unconditional rows; None: all that run, and the refiner.

        scales: how many run. Raises InvalidParamsError for more than the model has.
        """
        count, ratio = self.model_config.num_scales, self.model_config.guidance_ratio
        if guided_scales is not None and not is_integer(guided_scales, 0, count):
            expected = f"a number of scales in [0, {count}] for this model, {count} being all"
            raise InvalidParamsError(f"guided_scales must be {expected}, got {guided_scales!r}")
        if guided_scales is None or guided_scales >= (scales or count):
            return None
        while guided_scales > 0 and ratio(guided_scales - 1) == 0:
            guided_scales -= 1
        return guided_scales

    def _require_prefix(self, method: str) -> None:
        if not self.model_config.has_prefix:
            raise InvalidParamsError(f"{method} needs a super-resolution model; this is the class-to-image prior")

    def _request(
        self,
        batch: int,
        times: int,
        *,
        labels: PerImage,
        guidance_scale: PerImage | None,
        seed: PerImage,
        top_k: PerImage | None,
        top_p: PerImage | None,
        temperature: PerImage,
        refiner_temperature: PerImage | None,
        origins: Sequence[tuple[int, int]] | None = None,
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
            refiner_temperature=refiner_temperature,
            origins=origins,
        )
        return request, torch.tensor(seeds, dtype=torch.int64, device=self.device)

    def _run(
        self,
        lr: torch.Tensor | None,
        request: BatchRequest,
        seeds: torch.Tensor,
        noise: torch.Tensor | None,
        steps: int | None,
        refine: bool,
        scales: int | None,
        guided: int | None,
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
        with self._running(f"a batch of {request.batch}", request.batch):
            return self._pipeline.generate(
                lr,
                request,
                seeds=seeds,
                steps=steps,
                refine=refine,
                noise=noise,
                scales=scales,
                guided=guided,
                trace=trace,
                on_stage=on_stage,
            )

    def _must_offload(self) -> bool:
        """Whether parts of the model may not stay while others run: a batch of one would exceed the memory budget."""
        budget = self.config.memory_budget
        if budget is None:
            return False

        def peak(offload: bool) -> int:
            plan = memory_plan(self.model_config, self._shapes, 1, self.dtype, self._fp8, offload)
            return plan.peak + RESERVE

        if peak(offload=False) <= budget:
            return False
        if peak(offload=True) > budget:
            needed, given = (f"{size / 1024**3:.2f} GiB" for size in (peak(offload=True), budget))
            logger.warning("memory_budget is %s, but one tile of this model takes about %s", given, needed)
        return True

    def _choose_batch(self) -> int:
        """Images or tiles a batch: as configured, else what gains on this device, within the memory it may take."""
        if self.config.batch_invariant:
            return 1
        gpu = self.device.type == "cuda"
        if self.config.batch_size is not None:
            budget = self.config.memory_budget
            return self.config.batch_size if budget is None else min(self.config.batch_size, self._fitting(budget))
        most = LARGEST_BATCH if gpu else min(LARGEST_BATCH, tiles_per_pass(self.model_config, self.device, self.dtype))
        limits = [available_bytes(self.device) if gpu else None, self.config.memory_budget]
        bounds = [limit for limit in limits if limit is not None]
        if not bounds:
            return most
        return min(most, self._fitting(min(bounds)))

    def _fitting(self, available: int) -> int:
        """Images or tiles a batch that so many bytes hold, at least one."""
        shapes, fp8 = self._shapes, self._fp8
        return max(1, largest_batch(self.model_config, shapes, self.dtype, available, fp8, self.offloads))

    @contextlib.contextmanager
    def _on_backend(self) -> Iterator[None]:
        """The backend that was asked for. On a GPU float32 is float32 in cuDNN too, as it is elsewhere in torch; and
        cuDNN tries its algorithms where a graph will repeat the one that it finds, but for batch-invariant numerics."""
        with contextlib.ExitStack() as stack:
            if self._backend:
                stack.enter_context(use_backend(self._backend))
            if self.device.type == "cuda":
                fixed = self.config.batch_invariant
                search = self.captures_graphs and not fixed
                stack.enter_context(
                    torch.backends.cudnn.flags(enabled=True, benchmark=search, deterministic=fixed, allow_tf32=False)
                )
            yield

    @contextlib.contextmanager
    def _running(self, what: str, batch: int | None = None) -> Iterator[None]:
        """The engine's backend, and errors of memory in words: for a batch also what it takes and what would fit."""
        try:
            with self._turn, self._on_backend():
                yield
        except (MemoryError, torch.OutOfMemoryError) as error:
            if batch is None:
                raise ResourceExhaustedError(f"not enough memory for {what} ({error})") from error
            raise self._out_of_memory(what, batch) from error

    def _out_of_memory(self, what: str, batch: int) -> ResourceExhaustedError:
        needed, available = self.memory_plan(batch).peak, available_bytes(self.device)
        if available is None:
            return ResourceExhaustedError(f"not enough memory for {what}; lower batch_size", needed=needed)
        fits = largest_batch(self.model_config, self._shapes, self.dtype, available, self._fp8, self.offloads)
        fits = min(batch - 1, fits)
        advice = f"batch_size {fits} fits" if fits > 0 else "free some, or take a smaller model"
        return ResourceExhaustedError(
            f"not enough memory for {what}: it takes about {needed / 1024**3:.1f} GiB, of which "
            f"{available / 1024**3:.1f} are available on {self.device}; {advice}",
            needed=needed,
            available=available,
            largest_batch=fits,
        )

    def reclaim(self) -> None:
        """Give back what a failed batch may have left."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _require_memory(self, batch: int) -> None:
        """Raise ResourceExhaustedError where a batch cannot fit, before anything is allocated for it."""
        available = available_bytes(self.device)
        if available is not None and self.memory_plan(batch).peak + RESERVE > available:
            raise self._out_of_memory(f"a batch of {batch}", batch)
