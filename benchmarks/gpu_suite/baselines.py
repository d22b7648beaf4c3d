"""The engine against the network run as published, interleaved in one process: eager in fp16 autocast, and compiled.

The same random weights and the same pictures: only the way of running differs. torch.compile is applied to each part of
the network as its documentation advises (every block alike), with dynamic shapes, then with one compilation a shape:
the faster counts. What the time does not suffice for is cut with this process, and named.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch

from benchmarks.gpu_suite.engine_times import wait, wall
from benchmarks.gpu_suite.model import NOT_RUN, RandomCheckpoint, engine_config, load_engine, random_input
from benchmarks.gpu_suite.parity import psnr
from benchmarks.gpu_suite.settings import Settings
from benchmarks.gpu_suite.timing import spread
from benchmarks.gpu_suite.work import Clock, Item, NotRun, Result
from benchmarks.published_style import PublishedStyle
from varsr_engine.engine.engine import Engine

SECONDS = {"eager": 20.0, "dynamic": 12.0, "static": 12.0}  # of timed rounds, at most; never fewer than five
SHAPES = 64  # compilations of one function that torch may keep


class Rivals:
    """Both, on one network."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.device, self.compiled = settings, settings.torch_device, ""
        checkpoint = RandomCheckpoint(settings.config, self.device)
        read = checkpoint.open()
        tensors = {name: read(name) for name in checkpoint.shapes if not name.startswith(NOT_RUN)}
        autocast = self.device.type == "cuda"
        self.published = PublishedStyle(tensors, settings.config, autocast=autocast)
        self.engine: Engine = load_engine(checkpoint, engine_config(self.device, settings.compute_dtype))

    def run_engine(self, lr: torch.Tensor) -> torch.Tensor:
        return self.engine.generate(lr, seed=1, top_k=1).images

    def run_published(self, lr: torch.Tensor) -> torch.Tensor:
        config = self.settings.config
        out = self.published.generate(lr, [0] * len(lr), config.guidance_scale, seed=1, top_k=1)
        return out.image

    def agreement(self, lr: torch.Tensor) -> dict[str, Any]:
        """Of the two on the same noise: share of equal tokens of the last scale, PSNR of the images."""
        config = self.settings.config
        shape = (config.refiner_steps + 1, len(lr), config.latent_side**2, config.latent_channels)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        mine = self.engine.generate(lr, noise=noise, top_k=1)
        theirs = self.published.generate(lr, [0] * len(lr), config.guidance_scale, noise=noise, top_k=1)
        equal = (mine.tokens == theirs.tokens[-1]).double().mean().item()
        return {"tokens_equal": equal, "image_psnr": psnr(mine.images, theirs.image.cpu().double(), 1.0)}

    def compile(self, dynamic: bool) -> None:
        """Every part in place. Compiled code of an earlier call is dropped."""
        torch._dynamo.reset()
        for name in ("recompile_limit", "cache_size_limit"):  # the newer and the older name of one setting
            if hasattr(torch._dynamo.config, name):
                setattr(torch._dynamo.config, name, SHAPES)
        net = self.published.transformer
        parts = [*net.blocks, net.con_embedding, net.diffloss["net"], self.published.autoencoder.decoder]
        for part in parts:
            part.compile(dynamic=dynamic)


def items(settings: Settings, clock: Clock) -> list[Item]:
    rivals = cache(lambda: Rivals(settings))
    found = [Item(f"eager b{b}", partial(compete, rivals, "eager", b, clock)) for b in settings.baseline_batches]
    if not settings.dry_run:
        for kind in ("dynamic", "static"):
            for b in settings.baseline_batches:
                found.append(Item(f"compiled {kind} b{b}", partial(compete, rivals, kind, b, clock)))
    return [Item(item.name, item.run, group="baselines") for item in found]


def compete(rivals: Callable[[], Rivals], kind: str, batch: int, clock: Clock) -> Result:
    both = rivals()
    device, settings = both.device, both.settings
    lr = random_input(settings.config, batch, device)
    first = first_call(both, kind, lr)
    both.run_engine(lr)
    runs: dict[str, list[float]] = {"engine": [], "published": []}
    begin = time.monotonic()
    for done in range(settings.rounds):
        runs["engine"].append(wall(lambda: both.run_engine(lr), device))
        runs["published"].append(wall(lambda: both.run_published(lr), device))
        if done >= 4 and (time.monotonic() - begin > SECONDS[kind] or clock.left < 2):
            break
    ratios = [b / a for a, b in zip(runs["engine"], runs["published"], strict=True)]
    result: dict[str, Any] = {
        "batch": batch,
        "kind": kind,
        "autocast": both.published.autocast,
        "engine_s": spread(runs["engine"]),
        "published_s": spread(runs["published"]),
        "ratio": spread(ratios),
        "first_call_s": first,
        **both.agreement(lr),
    }
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both.run_published(lr)
        wait(device)
        result["published_activations_bytes"] = torch.cuda.max_memory_allocated() - before
    return result


def first_call(both: Rivals, kind: str, lr: torch.Tensor) -> float:
    """Seconds of the first call; it compiles, unless that was done for another batch already."""
    start = time.perf_counter()
    if kind == "eager":
        both.run_published(lr)
    else:
        try:
            if both.compiled != kind:
                both.compile(dynamic=kind == "dynamic")
                both.compiled = kind
            both.run_published(lr)
        except Exception as error:  # of torch's compiler: nothing of ours has failed
            raise NotRun(f"torch.compile: {type(error).__name__}: {error}"[:500]) from error
    wait(both.device)
    return time.perf_counter() - start
