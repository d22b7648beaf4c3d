"""A batch from low-resolution tensors to images: condition encoder, scale loop, refiner, decoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F

from varsr_engine.checkpoint import Checkpoint
from varsr_engine.config import ModelConfig
from varsr_engine.dispatch import Backend, active_backend
from varsr_engine.engine.convolutions import Convolutional, load_condition_encoder, load_decoder
from varsr_engine.engine.decoding import WINDOW_BYTES, decode_in_bands, window_side
from varsr_engine.engine.device import check_fp8
from varsr_engine.engine.graphs import CudaCapture, GraphCache, Tensors, run_in_chunks
from varsr_engine.engine.parts import Part
from varsr_engine.engine.planning import Pace
from varsr_engine.engine.quantization import Fp8Switches
from varsr_engine.engine.refiner_loop import RefinerLoop
from varsr_engine.engine.request import BatchRequest
from varsr_engine.engine.scale_loop import OnStage, ScaleLoop, ScaleResult
from varsr_engine.engine.weights import Reader, RefinerWeights, load_refiner, load_transformer
from varsr_engine.errors import NumericalError
from varsr_engine.model.varsr import Trace

# Parts above this size leave memory between their uses where that is free.
RELEASE_ABOVE_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class Sample:
    """What a batch became before the decoder."""

    latent: torch.Tensor  # (N, Z, p, p) float32
    tokens: torch.Tensor  # (N, p^2) int64, of the last scale
    seconds: dict[str, float]  # by stage
    trace: Trace | None = None


@dataclass(slots=True)
class Generation:
    """What a batch became. The trace holds every stage, if it was asked for."""

    images: torch.Tensor  # (N, 3, S, S) float32 in [0, 1]
    latent: torch.Tensor  # (N, Z, p, p) float32
    tokens: torch.Tensor  # (N, p^2) int64, of the last scale
    seeds: list[int]
    seconds: dict[str, float] = field(default_factory=dict)  # by stage: condition, scale.k, refiner, decoder
    trace: Trace | None = None


class StageClock:
    """Wall-clock seconds between stages, passed on to the caller's own observer."""

    def __init__(self, observer: OnStage | None, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._observer, self._device = observer, device
        self._last = time.perf_counter()

    def __call__(self, stage: str) -> None:
        if self._device.type == "cuda":  # kernels run behind the host: their time is this stage's
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
        if self._observer is not None:
            self._observer(stage)


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
    ) -> None:
        """largest_graph: on a GPU, batches up to this size run as CUDA graphs; None: none does.

        attention: the backend of `scale_attention`, as dispatch chooses if None. fp8: where products are FP8.
        memory_budget: bytes that a run may take; the decoder's windows keep to a quarter of it.
        Raises KernelUnavailableError where they cannot be.
        """
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

        def part_of(load: Callable[[Reader], object], *prefixes: str) -> Part:  # type: ignore[type-arg]
            names = [name for name in checkpoint.shapes if name.startswith(prefixes)]
            size = sum(torch.Size(checkpoint.shapes[name]).numel() for name in names) * dtype.itemsize
            mapped = device.type == "cpu" and checkpoint.is_mapped_as(dtype)
            return Part(lambda: load(Reader(checkpoint, device, dtype)), keep=not mapped or size < RELEASE_ABOVE_BYTES)

        self._condition: Part[Convolutional] = part_of(load_condition_encoder, "transformer.con_embedding.")
        self._refiner: Part[RefinerWeights] = part_of(load_refiner, "transformer.diffloss.")
        self._decoder: Part[Convolutional] = part_of(load_decoder, "vae.decoder.", "vae.post_quant_conv.")

    def generate(
        self,
        lr: torch.Tensor | None,
        request: BatchRequest,
        *,
        seeds: torch.Tensor,
        steps: int | None = None,
        refine: bool = True,
        noise: torch.Tensor | None = None,
        trace: bool = False,
        on_stage: OnStage | None = None,
    ) -> Generation:
        """Images for lr (B, 3, S, S) in [-1, 1] (None for the class-to-image prior): `sample`, then `decode`.

        Raises NumericalError if a pixel is not finite. Where the batch runs as a graph, on_stage hears of all
        stages when the last is done.
        """
        if self._graphs is not None and not trace and noise is None and seeds.shape[0] == request.batch:
            clock = StageClock(None, self.device)
            images, latent, tokens = self._by_graph("image", lr, request, steps, refine)
            checked_finite(images)
            clock("image")
            self.pace.note_tiles(clock.seconds["image"], len(images))
            self.pace.note_pixels(0.0, 1)  # the decoder is a part of it
            if on_stage is not None:
                for stage in self.stages(lr is not None, refine):
                    on_stage(stage)
            return Generation(images, latent, tokens, seeds.tolist(), clock.seconds)
        sample = self.sample(
            lr, request, seeds=seeds, steps=steps, refine=refine, noise=noise, trace=trace, on_stage=on_stage
        )
        clock = StageClock(on_stage, self.device)
        images = self.decode(sample.latent)
        clock("decoder")
        self.pace.note_pixels(clock.seconds["decoder"], images[:, 0].numel())
        seconds = sample.seconds | clock.seconds
        return Generation(images, sample.latent, sample.tokens, seeds.tolist(), seconds, sample.trace)

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
        trace: bool = False,
        on_stage: OnStage | None = None,
    ) -> Sample:
        """Latents for lr (B, 3, S, S) in [-1, 1], S the side of a tile (None for the class-to-image prior).

        seeds (B * n,): n latents an input, which share the tokens where all are greedy. noise (steps + 1, B * n, p^2,
        Z) replaces the refiner's own.
        """
        clock = StageClock(on_stage, self.device)
        if self._graphs is not None and not trace and noise is None and seeds.shape[0] == request.batch:
            latent, tokens = self._by_graph("latent", lr, request, steps, refine)
            clock("latent")
            self.pace.note_tiles(clock.seconds["latent"], len(latent))
            return Sample(latent, tokens, clock.seconds)
        record = Trace() if trace else None
        latent, tokens = self._latent(lr, request, seeds, steps, refine, noise, record, clock)
        self.pace.note_tiles(sum(clock.seconds.values()), len(latent))
        return Sample(latent, tokens, clock.seconds, record)

    def _by_graph(
        self,
        what: Literal["image", "latent"],
        lr: torch.Tensor | None,
        request: BatchRequest,
        steps: int | None,
        refine: bool,
    ) -> Tensors:
        """(images, latent, tokens) or (latent, tokens) of a batch of any size, by graphs of fixed sizes."""
        assert self._graphs is not None and self._largest_graph is not None
        settings, count = request.tensors(), 0 if lr is None else 1

        def program(*inputs: torch.Tensor) -> Tensors:
            own = request.with_tensors(inputs[count:])
            latent, tokens = self._latent(inputs[0] if count else None, own, own.seeds, steps, refine)
            return (latent, tokens) if what == "latent" else (self._decoded(latent), latent, tokens)

        for part in (self._condition, self._refiner, self._decoder):
            part.run(lambda weights: None)  # loaded before a capture
        inputs = settings if lr is None else (lr, *settings)
        key = what, count, request.greedy, steps, refine, active_backend()
        return run_in_chunks(self._graphs, key, program, inputs, self._largest_graph)

    def stages(self, prefix: bool, refine: bool) -> list[str]:
        """The names of the stages of an image, in order."""
        scales = [f"scale.{k}" for k in range(self.config.num_scales)]
        return [*(["condition"] if prefix else []), *scales, *(["refiner"] if refine else []), "decoder"]

    def _latent(
        self,
        lr: torch.Tensor | None,
        request: BatchRequest,
        seeds: torch.Tensor,
        steps: int | None,
        refine: bool,
        noise: torch.Tensor | None = None,
        record: Trace | None = None,
        clock: OnStage = lambda stage: None,
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
        result = self._scale_loop.run(prefix, request, clock, record)
        if times > 1:
            request = request.repeat(times, seeds)
            hidden = result.hidden.unflatten(0, (2, -1)).repeat_interleave(times, dim=1).flatten(0, 1)
            result = ScaleResult(hidden, *(t.repeat_interleave(times, dim=0) for t in result[1:]))
        latent = result.f_hat
        z = residual = None
        if refine:
            z = self._refiner_condition(result)
            residual = self._refiner.run(
                partial(self._refiner_loop.run, z=z, request=request, steps=steps, noise=noise)
            )
            latent = latent + residual.transpose(1, 2).unflatten(2, latent.shape[2:])
            clock("refiner")
        if record is not None:
            record.prefix, record.residual, record.latent = prefix, residual, latent
            record.z = None if z is None else z.flatten(0, 1)
        return latent, result.tokens

    def _refiner_condition(self, result: ScaleResult) -> torch.Tensor:
        """z (2, B, p^2, C) = LN(x_last + word_embed(codebook[tokens_last])), the embedding shared by both branches."""
        w = self._scale_loop.weights
        x = result.hidden.unflatten(0, (2, -1)) + w.codebook_embedding[result.tokens]
        return F.layer_norm(x, x.shape[-1:], *w.final_norm, self.config.norm_eps)

    @torch.inference_mode()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Images (N, 3, H * f, W * f) in [0, 1] of latents (N, Z, H, W) of any size; f: the model's downsampling.

        On a CPU one at a time, to bound the memory. Raises NumericalError if a pixel is not finite.
        """
        return checked_finite(self._decoded(latent))

    @property
    def window_side(self) -> int:
        """Cells a side of the decoder's windows."""
        return window_side(self.config, self.dtype.itemsize, self._window_bytes)

    @torch.inference_mode()
    def decode_in_bands(self, latent: torch.Tensor) -> Iterator[torch.Tensor]:
        """The image of one latent (Z, H, W) of any size in bands (3, h, W * f) in [0, 1] on the CPU, memory bounded.

        A latent of one window is decoded as by `decode`. Raises NumericalError if a pixel is not finite.
        """

        def decode(decoder: Convolutional) -> Iterator[torch.Tensor]:
            return decode_in_bands(decoder, latent, self.window_side, self.config.downsample, self.config.latent_side)

        for band in self._decoder.run(decode):
            yield checked_finite(band.clamp_(-1, 1).mul_(0.5).add_(0.5)[None])[0].cpu()

    def _decoded(self, latent: torch.Tensor) -> torch.Tensor:
        def decode(decoder: Convolutional) -> torch.Tensor:
            if self.device.type != "cpu":
                images: torch.Tensor = decoder(latent)
                return images
            return torch.cat([decoder(part) for part in latent.split(1)])

        return self._decoder.run(decode).clamp_(-1, 1).mul_(0.5).add_(0.5)


def checked_finite(images: torch.Tensor) -> torch.Tensor:
    """images. Raises NumericalError if a pixel is NaN or infinite; the one wait for the device."""
    if not torch.isfinite(images).all():
        bad = [i for i, image in enumerate(images) if not torch.isfinite(image).all()]
        raise NumericalError(f"the network gave NaN or infinity for image(s) {bad}; try dtype fp32", rows=bad)
    return images
