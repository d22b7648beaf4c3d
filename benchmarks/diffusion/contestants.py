"""Who takes turns: peers, VARSR as published, and the engine, all called alike with pictures on the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.diffusion.costs import parameters_of
from benchmarks.diffusion.levels import Captured, raise_level, raise_published
from benchmarks.diffusion.methods import Pictures
from benchmarks.diffusion.peers import Peer
from benchmarks.diffusion.settings import Settings
from benchmarks.diffusion.weights import load_weights
from benchmarks.gpu_suite.model import NOT_RUN, RandomCheckpoint, engine_config, load_engine
from benchmarks.gpu_suite.settings import Settings as SuiteSettings
from benchmarks.gpu_suite.work import NotRun
from benchmarks.published_style import PublishedStyle
from varsr_engine.checkpoint import Checkpoint, open_checkpoint
from varsr_engine.config import ModelConfig
from varsr_engine.engine.cost import stage_costs
from varsr_engine.engine.engine import Engine
from varsr_engine.errors import KernelUnavailableError

PUBLISHED_NAME = "VARSR, published style"

Call = Callable[[Pictures, int], Tensor]


@dataclass
class Contestant:
    """call(pictures, seed): (B, 3, S, S) float32 in [0, 1] on the device.

    flops: multiplications and additions of one picture; None until its first call has counted them. steps: calls of
    a denoiser. seeded: whether another seed gives another picture. upscale: the engine's own way from a picture
    (h, w, 3) uint8 on the host to one, tiles included.
    """

    name: str
    call: Call
    flops: float | None
    steps: int = 1
    seeded: bool = True
    fp8: bool = False
    how: str = "eager"
    facts: dict[str, Any] = field(default_factory=dict)
    upscale: Callable[[np.ndarray], np.ndarray] | None = None

    def first_call(self, pictures: Pictures, seed: int) -> Tensor:
        """The first of all: counts the arithmetic where no table has it, and is timed, compilation included."""
        start = time.perf_counter()
        if self.flops is None:
            with FlopCounterMode(display=False) as counter:
                out = self.call(pictures, seed)
            self.flops = counter.get_total_flops() / len(pictures.low)
        else:
            out = self.call(pictures, seed)
        synchronise(out.device)
        self.facts["first_call_s"] = time.perf_counter() - start
        return out


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated() if device.type == "cuda" else 0


class PeerContestant:
    """One peer's networks, brought from level to level in place. flops: of a picture; None until somebody counts."""

    def __init__(self, peer: Peer, settings: Settings) -> None:
        self.peer, self._settings = peer, settings
        self._device, self._level = settings.torch_device, 0
        self.flops = None if settings.smoke else 2 * peer.macs * 1e9
        self._graphs: dict[tuple[int, ...], Captured] = {}  # by the shape of the input
        torch.manual_seed(settings.seed)
        before, start = allocated(self._device), time.perf_counter()
        with self._device:
            self._method = peer.build(settings.sizes).eval().requires_grad_(False)
        folder = settings.folder_of(peer.name)
        if folder is not None:
            load_weights(self._method, peer, Path(folder))
        self._method.to(self._device, settings.torch_dtype)
        self.facts = {
            "parameters": parameters_of(self._method),
            "weights": "random" if folder is None else "real",
            "load_s": time.perf_counter() - start,
            "weights_bytes": tensor_bytes(self._method),
            "left_out": peer.left_out,
        }
        if self._device.type == "cuda":
            self.facts["allocated_bytes"] = allocated(self._device) - before

    def at(self, level: int) -> Contestant:
        """Raises what torch.compile or a capture raises, at the first call."""
        while self._level < level:
            self._level += 1
            raise_level(self._method, self._level, self._settings.compile_mode)
        peer, sizes = self.peer, self._settings.sizes
        graphed = level == 2 and self._device.type == "cuda"
        return Contestant(
            peer.name,
            self._call_graph if graphed else self._call,
            self.flops,
            sizes.steps(peer.steps),
            self._method.seeded,
            how=("compiled, graph" if graphed else "compiled") if level == 2 else "eager",
            facts=dict(self.facts),
        )

    @property
    def takes_any_size(self) -> bool:
        return self._method.takes_any_size

    def _call(self, pictures: Pictures, seed: int) -> Tensor:
        torch.manual_seed(seed)
        return self._method(pictures)

    def _call_graph(self, pictures: Pictures, seed: int) -> Tensor:
        """By a graph, captured at the first call with pictures of a shape."""
        shape = tuple(pictures.low.shape)
        if shape not in self._graphs:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # compiles, tunes and allocates before the capture
                for _ in range(2):
                    self._method(pictures)
            torch.cuda.current_stream().wait_stream(side)
            self._graphs[shape] = Captured(self._method, pictures)
        torch.manual_seed(seed)  # a graph's noise follows the generator's seed
        return self._graphs[shape](pictures)


def tensor_bytes(module: torch.nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


# --- VARSR -------------------------------------------------------------------------------------------------------


def varsr_config(settings: Settings) -> ModelConfig:
    if not settings.smoke:
        return ModelConfig.varsr_d24()
    return replace(SuiteSettings.dry().config, patch_nums=(1, 2, 4))


def varsr_checkpoint(settings: Settings) -> Checkpoint:
    """Random weights of the published scales, drawn on the device; or the model that was named."""
    if settings.model is None:
        return RandomCheckpoint(varsr_config(settings), settings.torch_device)
    return open_checkpoint(settings.model, local_files_only=True)


def varsr_flops(config: ModelConfig) -> float:
    """Of one guided picture, by the ops' cost models."""
    return float(sum(cost.flops for cost in stage_costs(config).values()))


class PublishedContestant:
    """VARSR the way the published code runs it: float32 weights, on a GPU under autocast to fp16."""

    def __init__(self, settings: Settings) -> None:
        self._level = 0
        checkpoint = varsr_checkpoint(settings)
        read, start = checkpoint.open(), time.perf_counter()
        device = settings.torch_device
        tensors = {n: read(n).to(device, torch.float32) for n in checkpoint.shapes if not n.startswith(NOT_RUN)}
        self._config, autocast = checkpoint.config, device.type == "cuda"
        self._model = PublishedStyle(tensors, self._config, autocast=autocast)
        modules = (self._model.transformer, self._model.autoencoder)
        self.facts = {
            "parameters": sum(map(parameters_of, modules)),
            "weights": "random" if settings.model is None else "real",
            "load_s": time.perf_counter() - start,
            "weights_bytes": sum(map(tensor_bytes, modules)),
            "left_out": "Checkpoint wrappers, which only cost time.",
        }

    def at(self, level: int) -> Contestant:
        while self._level < level:
            self._level += 1
            raise_published(self._model, self._level)
        how = "compiled" if level == 2 else "eager"
        return Contestant(PUBLISHED_NAME, self._call, varsr_flops(self._config), how=how, facts=dict(self.facts))

    def _call(self, pictures: Pictures, seed: int) -> Tensor:
        lr = pictures.resized * 2 - 1
        out = self._model.generate(lr, [0] * len(lr), self._config.guidance_scale, seed=seed, top_k=1)
        return out.image.float()


def engine_name(backend: str, mode: str) -> str:
    return f"engine {mode}" + ("" if backend == "auto" else f", {backend} backend")


def engine_contestant(settings: Settings, backend: str, mode: str, batch: int = 8) -> Contestant:
    """The engine on a backend, in fp32, fp16, bf16 or fp8. Raises NotRun, with the reason, where it cannot run here."""
    device, checkpoint = settings.torch_device, varsr_checkpoint(settings)
    before, start = allocated(device), time.perf_counter()
    try:
        engine = load_engine(checkpoint, engine_config(device, mode, backend=backend, batch_size=batch))
    except KernelUnavailableError as error:
        raise NotRun(str(error)) from error

    def call(pictures: Pictures, seed: int) -> Tensor:
        try:
            return engine.generate(pictures.resized * 2 - 1, seed=seed, top_k=1).images
        except KernelUnavailableError as error:
            raise NotRun(str(error)) from error

    facts = {"weights": "random" if settings.model is None else "real", "load_s": time.perf_counter() - start}
    if device.type == "cuda":
        facts |= {"weights_bytes": allocated(device) - before, "allocated_bytes": allocated(device) - before}
    return Contestant(
        engine_name(backend, mode),
        call,
        varsr_flops(checkpoint.config),
        fp8=mode == "fp8",
        how="its own",
        facts=facts,
        upscale=lambda rgb: own_upscale(engine, rgb, settings),
    )


def own_upscale(engine: Engine, rgb: np.ndarray, settings: Settings) -> np.ndarray:
    """(4h, 4w, 3) uint8 of (h, w, 3): as a user calls it, resize, tiles and colour fix the engine's own."""
    overlap = round(settings.tile_overlap * engine.model_config.latent_side)
    result = engine.upscale(
        rgb, scale=4.0, seed=settings.seed, color_fix="adain", fidelity=0.0, tile_overlap=overlap, top_k=1
    )
    return result.picture.rgb
