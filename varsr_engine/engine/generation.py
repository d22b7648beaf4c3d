"""A batch from low-resolution tensors to images: condition encoder, scale loop, refiner, decoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F

from varsr_engine.checkpoint import Checkpoint
from varsr_engine.config import ModelConfig
from varsr_engine.dispatch import Backend, active_backend
from varsr_engine.engine.convolutions import Convolutional, load_condition_encoder, load_decoder
from varsr_engine.engine.decoding import WINDOW_BYTES, decode_in_bands, window_shape
from varsr_engine.engine.device import check_fp8
from varsr_engine.engine.graphs import CudaCapture, GraphCache, Tensors, run_in_chunks
from varsr_engine.engine.latent_rows import LatentRows
from varsr_engine.engine.memory import part_bytes
from varsr_engine.engine.nonfinite import (
    DecoderWithFloat32,
    OnAgain,
    bad_rows,
    finite_rows,
    float32_backend,
    keeps_float32,
    name_of,
    not_finite,
)
from varsr_engine.engine.parts import Part
from varsr_engine.engine.planning import Pace
from varsr_engine.engine.quantization import Fp8Switches
from varsr_engine.engine.refiner_loop import RefinerLoop
from varsr_engine.engine.request import BatchRequest
from varsr_engine.engine.scale_loop import OnScale, OnStage, ScaleLoop, ScaleResult
from varsr_engine.engine.weights import Reader, RefinerWeights, load_refiner, load_transformer
from varsr_engine.errors import NumericalError
from varsr_engine.model.varsr import Trace

# Parts above this size leave memory between their uses where that is free.
RELEASE_ABOVE_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class Sample:
    """What a batch became before the decoder."""

    latent: torch.Tensor  # (N, Z, p, p) float32
    tokens: torch.Tensor  # (N, p^2) int64, of the last scale that ran
    seconds: dict[str, float]  # by stage
    trace: Trace | None = None
    again: list[int] = field(default_factory=list)  # rows that were not finite, and were run again in float32


@dataclass(slots=True)
class Generation:
    """What a batch became. The trace holds every stage, if it was asked for."""

    images: torch.Tensor  # (N, 3, S, S) float32 in [0, 1]
    latent: torch.Tensor  # (N, Z, p, p) float32
    tokens: torch.Tensor  # (N, p^2) int64, of the last scale that ran
    seeds: list[int]
    seconds: dict[str, float] = field(default_factory=dict)  # by stage: condition, scale.k, refiner, decoder
    trace: Trace | None = None
    again: list[int] = field(default_factory=list)  # rows that were not finite, and were run again in float32


class StageClock:
    """Wall-clock seconds between stages, passed on to the caller's own observers, whose time is no stage's.

    on_latent hears, in the place of the observer, of the stages that leave a latent (N, Z, p, p).
    """

    def __init__(self, observer: OnStage | None, device: torch.device, on_latent: OnScale | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._observer, self._on_latent, self._device = observer, on_latent, device
        self._last = time.perf_counter()

    def __call__(self, stage: str, latent: torch.Tensor | None = None) -> None:
        if self._device.type == "cuda":  # kernels run behind the host: their time is this stage's
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        if latent is not None and self._on_latent is not None:
            self._on_latent(stage, latent)
        elif self._observer is not None:
            self._observer(stage)
        self._last = time.perf_counter()


def unheard(stage: str, latent: torch.Tensor | None = None) -> None:
    """The clock of a run that nobody times."""


class Pipeline:
    """The model on one device, from tensors to tensors. Not thread-safe: one call at a time."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        on_progress: Callable[[int, int], None] | None = None,
        *,
        largest_graph: int | None = None,
        attention: Backend | None = None,
        memory_budget: int | None = None,
        fp8: Fp8Switches | None = None,
        offload: bool = False,
    ) -> None:
        """largest_graph: on a GPU, batches up to this size run as CUDA graphs; None: none does.

        attention: the backend of `scale_attention`, as dispatch chooses if None. fp8: where products are FP8.
        memory_budget: bytes that a run may take; the decoder's windows keep to a quarter of it.
        offload: keep no part that rests, load each when it is used; not with graphs, which hold on to the weights.
        Raises KernelUnavailableError where they cannot be.
        """
        if offload and largest_graph is not None:
            raise ValueError("parts that come and go cannot be in a graph")
        self.config: ModelConfig = checkpoint.config
        self.pace = Pace()
        self._window_bytes = WINDOW_BYTES if memory_budget is None else min(WINDOW_BYTES, memory_budget // 4)
        self._largest_graph = largest_graph
        self._graphs = None if largest_graph is None or device.type != "cuda" else GraphCache(CudaCapture(device))
        self.device, self.dtype = device, dtype
        if fp8 is not None:
            check_fp8(device)
        root = Reader(checkpoint, device, dtype)
        self._scale_loop = ScaleLoop(self.config, load_transformer(root, on_progress, fp8), device, dtype, attention)
        self._refiner_loop = RefinerLoop(self.config, device)

        sizes, mapped = part_bytes(checkpoint.shapes, dtype), device.type == "cpu" and checkpoint.is_mapped_as(dtype)

        def part_of(load: Callable[[Reader], object], stage: str) -> Part:  # type: ignore[type-arg]
            keep = not offload and (not mapped or sizes[stage] < RELEASE_ABOVE_BYTES)
            return Part(lambda: load(Reader(checkpoint, device, dtype)), keep)

        self._condition: Part[Convolutional] = part_of(load_condition_encoder, "condition")
        self._refiner: Part[RefinerWeights] = part_of(load_refiner, "refiner")
        self._decoder: Part[Convolutional] = part_of(load_decoder, "decoder")
        self._float32: Part[Pipeline] | None = None  # for what is not finite in 16 bits
        self._float32_decoder: Part[Convolutional] | None = None
        if dtype != torch.float32:
            keep, exact = not offload and keeps_float32(checkpoint, device), torch.float32
            plain: dict[str, Any] = {"memory_budget": memory_budget, "offload": offload}
            self._float32 = Part(lambda: Pipeline(checkpoint, device, exact, **plain), keep)
            self._float32_decoder = Part(lambda: load_decoder(Reader(checkpoint, device, exact)), keep)

    def generate(
        self,
        lr: torch.Tensor | None,
        request: BatchRequest,
        *,
        seeds: torch.Tensor,
        steps: int | None = None,
        refine: bool = True,
        noise: torch.Tensor | None = None,
        scales: int | None = None,
        guided: int | None = None,
        trace: bool = False,
        on_stage: OnStage | None = None,
        on_latent: OnScale | None = None,
    ) -> Generation:
        """Images for lr (B, 3, S, S) in [-1, 1] (None for the class-to-image prior): `sample`, then `decode`.

        An image that is not finite in a 16-bit type is run again in float32, by itself, but for a traced one. Raises
        NumericalError, with the rows that are not finite in float32 either. Where the batch runs as a graph, on_stage
        hears of all stages when the last is done.
        """
        if self._graphed(request, seeds, noise, trace, on_latent):
            clock = StageClock(None, self.device)
            images, latent, tokens = self._by_graph("image", lr, request, steps, refine, scales, guided)
            finite = finite_rows(images, wait=False)
            clock("image")  # waits
            if scales is None:
                self.pace.note_tiles(clock.seconds["image"], len(images))
                self.pace.note_pixels(0.0, 1)  # the decoder is a part of it
            if on_stage is not None:
                for stage in self.stages(lr is not None, refine, scales):
                    on_stage(stage)
            sample, again = Sample(latent, tokens, clock.seconds), bad_rows(finite)
            if again:
                rows = bad_rows(finite_rows(latent))
                settings: dict[str, Any] = {"steps": steps, "refine": refine, "scales": scales, "guided": guided}
                self._sample_again(sample, rows, lr, request, seeds, **settings)
                self._decode_again(images, latent, again)
            return Generation(images, latent, tokens, seeds.tolist(), clock.seconds, again=again)
        sample = self.sample(
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
            on_latent=on_latent,
        )
        clock = StageClock(on_stage, self.device)
        again = list(sample.again)
        images = self.decode(sample.latent, again)
        clock("decoder")
        self.pace.note_pixels(clock.seconds["decoder"], images[:, 0].numel())
        seconds = sample.seconds | clock.seconds
        return Generation(images, sample.latent, sample.tokens, seeds.tolist(), seconds, sample.trace, again)

    @torch.inference_mode()
    def sample(
        self,
        lr: torch.Tensor | None,
        request: BatchRequest,
        *,
        seeds: torch.Tensor,
        steps: int | None = None,
        refine: bool = True,
        noise: torch.Tensor | None = None,
        scales: int | None = None,
        guided: int | None = None,
        trace: bool = False,
        on_stage: OnStage | None = None,
        on_latent: OnScale | None = None,
    ) -> Sample:
        """Latents for lr (B, 3, S, S) in [-1, 1], S the side of a tile (None for the class-to-image prior).

        seeds (B * n,): n latents an input, which share the tokens where all are greedy. noise (steps + 1, B * n, p^2,
        Z) replaces the refiner's own. scales: of a draft, how many run: fewer than all, and no refiner.
        guided: how many of the first scales have guidance; None: all, and the refiner.
        on_latent(stage, latent) hears of the stages that leave a latent, in the place of on_stage; it must neither
        change nor keep it.
        """
        clock = StageClock(on_stage, self.device, on_latent)
        if self._graphed(request, seeds, noise, trace, on_latent):
            latent, tokens = self._by_graph("latent", lr, request, steps, refine, scales, guided)
            finite, record = finite_rows(latent, wait=False), None
            clock("latent")  # waits
        else:
            record = Trace() if trace else None
            latent, tokens = self._latent(lr, request, seeds, steps, refine, scales, guided, noise, record, clock)
            finite = finite_rows(latent)
        if scales is None:  # drafts say nothing of the pace
            self.pace.note_tiles(sum(clock.seconds.values()), len(latent))
        sample = Sample(latent, tokens, clock.seconds, record)
        settings: dict[str, Any] = {"steps": steps, "refine": refine, "scales": scales, "guided": guided}
        self._sample_again(sample, bad_rows(finite), lr, request, seeds, noise=noise, **settings)
        return sample

    @torch.inference_mode()
    def _sample_again(
        self,
        sample: Sample,
        rows: list[int],
        lr: torch.Tensor | None,
        request: BatchRequest,
        seeds: torch.Tensor,
        *,
        noise: torch.Tensor | None = None,
        **settings: Any,
    ) -> None:
        """Give rows of a sample, which are not finite, what they are in float32: one by one, to bound the memory.

        Raises NumericalError with those that are not finite there either. A traced sample shows what happened.
        """
        if not rows:
            return
        if self._float32 is None or sample.trace is not None:
            raise not_finite(rows, name_of(self.dtype))
        times = len(seeds) // request.batch
        own, failed, clock = request.repeat(times, seeds), [], StageClock(None, self.device)

        def run(pipeline: Pipeline) -> None:
            for row in rows:
                one, place = slice(row, row + 1), slice(row // times, row // times + 1)
                drawn = None if noise is None else noise[:, one]
                given = None if lr is None else lr[place]
                try:
                    exact = pipeline.sample(given, own.row(row), seeds=seeds[one], noise=drawn, **settings)
                except NumericalError:
                    failed.append(row)
                    continue
                sample.latent[row], sample.tokens[row] = exact.latent[0], exact.tokens[0]
                sample.again.append(row)

        with float32_backend():
            self._float32.run(run)
        clock("float32")
        sample.seconds |= clock.seconds
        if failed:
            raise not_finite(failed, name_of(self.dtype), "fp32")

    def _graphed(
        self,
        request: BatchRequest,
        seeds: torch.Tensor,
        noise: torch.Tensor | None,
        trace: bool,
        on_latent: OnScale | None,
    ) -> bool:
        """Whether a batch runs as a graph: nothing is put into it, and nobody looks at it before its end."""
        if trace or noise is not None or on_latent is not None:
            return False
        return self._graphs is not None and seeds.shape[0] == request.batch

    def _by_graph(
        self,
        what: Literal["image", "latent"],
        lr: torch.Tensor | None,
        request: BatchRequest,
        steps: int | None,
        refine: bool,
        scales: int | None,
        guided: int | None,
    ) -> Tensors:
        """(images, latent, tokens) or (latent, tokens) of a batch of any size, by graphs of fixed sizes."""
        assert self._graphs is not None and self._largest_graph is not None
        settings, count = request.tensors(), 0 if lr is None else 1

        def program(*inputs: torch.Tensor) -> Tensors:
            own = request.with_tensors(inputs[count:])
            given = inputs[0] if count else None
            latent, tokens = self._latent(given, own, own.seeds, steps, refine, scales, guided)
            return (latent, tokens) if what == "latent" else (self._decoded(latent), latent, tokens)

        for part in (self._condition, self._refiner, self._decoder):
            part.run(lambda weights: None)  # loaded before a capture
        inputs = settings if lr is None else (lr, *settings)
        key = what, count, request.greedy, steps, refine, scales, guided, active_backend()
        return run_in_chunks(self._graphs, key, program, inputs, self._largest_graph)

    def stages(self, prefix: bool, refine: bool, scales: int | None = None) -> list[str]:
        """The names of the stages of an image, in order."""
        names = [f"scale.{k}" for k in range(scales or self.config.num_scales)]
        refined = ["refiner"] if refine and scales is None else []
        return [*(["condition"] if prefix else []), *names, *refined, "decoder"]

    def _latent(
        self,
        lr: torch.Tensor | None,
        request: BatchRequest,
        seeds: torch.Tensor,
        steps: int | None,
        refine: bool,
        scales: int | None = None,
        guided: int | None = None,
        noise: torch.Tensor | None = None,
        record: Trace | None = None,
        clock: Callable[..., None] = unheard,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(latent, last scale's tokens). Waits for nothing: a GPU runs it as part of a graph."""
        times = seeds.shape[0] // request.batch
        prefix = None
        if lr is not None:
            prefix = self._condition.run(lambda encoder: encoder(lr))
            clock("condition")
        if not request.greedy and times > 1:  # sampled tokens differ by seed
            prefix = None if prefix is None else prefix.repeat_interleave(times, dim=0)
            request, times = request.repeat(times, seeds), 1
        result = self._scale_loop.run(prefix, request, clock, record, scales, guided)
        if times > 1:
            request = request.repeat(times, seeds)
            hidden = by_branch(result).repeat_interleave(times, dim=1).flatten(0, 1)
            result = ScaleResult(hidden, *(t.repeat_interleave(times, dim=0) for t in result[1:]))
        latent = result.f_hat
        z = residual = None
        if refine and scales is None:  # its condition is the last scale's output
            z = self._refiner_condition(result)
            residual = self._refiner.run(
                partial(self._refiner_loop.run, z=z, request=request, steps=steps, noise=noise)
            )
            latent = latent + residual.transpose(1, 2).unflatten(2, latent.shape[2:])
            clock("refiner", latent)
        if record is not None:
            record.prefix, record.residual, record.latent = prefix, residual, latent
            record.z = None if z is None else z.flatten(0, 1)
        return latent, result.tokens

    def _refiner_condition(self, result: ScaleResult) -> torch.Tensor:
        """z (2, B, p^2, C) = LN(x_last + word_embed(codebook[tokens_last])), the embedding shared by both branches.

        (1, B, p^2, C) where the last scale had no guidance.
        """
        w = self._scale_loop.weights
        x = by_branch(result) + w.codebook_embedding[result.tokens]
        return F.layer_norm(x, x.shape[-1:], *w.final_norm, self.config.norm_eps)

    @torch.inference_mode()
    def decode(self, latent: torch.Tensor, again: list[int] | None = None) -> torch.Tensor:
        """Images (N, 3, H * f, W * f) in [0, 1] of latents (N, Z, H, W) of any size; f: the model's downsampling.

        On a CPU one at a time, to bound the memory. again: the rows to decode in float32, where the dtype is another;
        those that are not finite join them. Raises NumericalError with those that are not finite in float32 either.
        """
        again = [] if again is None else again
        images = self._decoded(latent)
        again += [row for row in bad_rows(finite_rows(images)) if row not in again]
        self._decode_again(images, latent, again)
        return images

    @torch.inference_mode()
    def _decode_again(self, images: torch.Tensor, latent: torch.Tensor, rows: list[int]) -> None:
        """Give rows of images what their latents are decoded in float32."""
        if not rows:
            return
        if self._float32_decoder is None:
            raise not_finite(rows, name_of(self.dtype))

        def run(decoder: Convolutional) -> None:
            for row in rows:
                images[row] = in_range(decoder(latent[row : row + 1]))[0]

        with float32_backend():
            self._float32_decoder.run(run)
        failed = [row for row in rows if not torch.isfinite(images[row]).all()]
        if failed:
            raise not_finite(failed, name_of(self.dtype), "fp32")

    def window_shape(self, columns: int) -> tuple[int, int]:
        """(rows, columns) in cells of the decoder's windows, for a latent of so many columns."""
        return window_shape(self.config, columns, self.dtype.itemsize, self._window_bytes)

    @torch.inference_mode()
    def decode_in_bands(self, latent: LatentRows, on_again: OnAgain | None = None) -> Iterator[torch.Tensor]:
        """The image of one latent (Z, H, W) of any size in bands (3, h, W * f) in [0, 1] on the CPU, memory bounded.

        A latent of one window is decoded as by `decode`. A window that is not finite in a 16-bit type is decoded again
        in float32, of which on_again hears once; raises NumericalError if a pixel is not finite in float32 either.
        """

        def decode(decoder: Convolutional) -> Iterator[torch.Tensor]:
            if self._float32_decoder is not None:
                decoder = cast(Convolutional, DecoderWithFloat32(decoder, self._float32_decoder, on_again))
            shape, f = self.window_shape(latent.columns), self.config.downsample
            return decode_in_bands(decoder, latent, self.device, shape, f, self.config.latent_side)

        for band in self._decoder.run(decode):
            band = in_range(band)
            if not torch.isfinite(band).all():
                raise not_finite([0], name_of(self.dtype))
            yield band.cpu()

    def _decoded(self, latent: torch.Tensor) -> torch.Tensor:
        def decode(decoder: Convolutional) -> torch.Tensor:
            if self.device.type != "cpu":
                images: torch.Tensor = decoder(latent)
                return images
            return torch.cat([decoder(part) for part in latent.split(1)])

        return in_range(self._decoder.run(decode))


def by_branch(result: ScaleResult) -> torch.Tensor:
    """The last step's output, (2, B, p^2, C), or (1, B, p^2, C) without guidance."""
    return result.hidden.unflatten(0, (-1, len(result.tokens)))


def in_range(images: torch.Tensor) -> torch.Tensor:
    """The decoder's output, cut to [-1, 1] and brought to [0, 1], in place. NaN stays NaN."""
    return images.clamp_(-1, 1).mul_(0.5).add_(0.5)
