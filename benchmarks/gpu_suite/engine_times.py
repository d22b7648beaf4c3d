"""The engine end to end, as in production: CUDA graphs on, from the tensor in to the image out, and its memory."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_suite.model import (
    LARGE_SCALE,
    TYPICAL_SCALE,
    RandomCheckpoint,
    engine_config,
    load_engine,
    random_input,
)
from benchmarks.gpu_suite.settings import Settings
from benchmarks.gpu_suite.timing import spread
from benchmarks.gpu_suite.work import Clock, Item, NotRun, Result
from varsr_engine.engine.cost import stage_costs
from varsr_engine.engine.engine import Engine
from varsr_engine.errors import KernelUnavailableError

SECONDS = 20.0  # of timed runs a batch, at most; never fewer than five runs
FEW_ROUNDS = 20  # of the graph's replay alone, and of variants


class Held:
    """One engine at a time: the next mode's peak memory must not show the last one's."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._key: object = None
        self._engine: Engine | None = None
        self.facts: dict[str, Any] = {}

    def get(self, mode: str, log_scale: tuple[float, float] = TYPICAL_SCALE, **options: object) -> Engine:
        key = mode, log_scale, tuple(sorted(options.items()))
        if self._engine is not None and self._key == key:
            return self._engine
        device = self._settings.torch_device
        self._engine = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        config = engine_config(device, mode, **options)
        start = time.perf_counter()
        engine = load_engine(RandomCheckpoint(self._settings.config, device, log_scale), config)
        for part in (engine._pipeline._condition, engine._pipeline._refiner, engine._pipeline._decoder):
            part.run(lambda weights: None)
        wait(device)
        self.facts = {"load_s": round(time.perf_counter() - start, 3)}
        if device.type == "cuda":
            self.facts |= {"weights_bytes": torch.cuda.memory_allocated()}
            self.facts |= {"load_peak_bytes": torch.cuda.max_memory_allocated()}
            torch.cuda.reset_peak_memory_stats()
        self._engine, self._key = engine, key
        return engine


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def items(settings: Settings, clock: Clock) -> list[Item]:
    held, mode = Held(settings), settings.compute_dtype
    found = [Item(f"b{b} {mode}", partial(measure, held, settings, clock, mode, b)) for b in settings.engine_batches]
    ends = sorted({settings.engine_batches[0], settings.engine_batches[-1]})
    found += [Item(f"stages b{b} {mode}", partial(stages, held, settings, mode, b)) for b in ends]
    found += [Item(f"b{b} fp8", partial(measure, held, settings, clock, "fp8", b)) for b in settings.engine_batches]
    few = replace(settings, rounds=min(settings.rounds, FEW_ROUNDS))
    large = partial(measure, held, few, clock, mode, log_scale=LARGE_SCALE)
    found += [Item(f"b{b} {mode}, attention scales near 15", partial(large, b)) for b in ends]
    if settings.device == "cuda":
        cudnn = partial(measure, held, few, clock, mode, attention="cudnn")
        found += [Item(f"b{b} {mode}, cuDNN attention", partial(cudnn, b)) for b in ends]
    return [Item(item.name, item.run, group="engine") for item in found]


def measure(
    held: Held,
    settings: Settings,
    clock: Clock,
    mode: str,
    batch: int,
    log_scale: tuple[float, float] = TYPICAL_SCALE,
    **options: object,
) -> Result:
    """Wall clock of `generate` with tensors on the device, interleaved with the graph's replay alone, by events."""
    device = settings.torch_device
    try:
        engine = held.get(mode, log_scale, **options)
        lr = random_input(settings.config, batch, device)
        start = time.perf_counter()
        images = engine.generate(lr, seed=1).images
        wait(device)
        first = time.perf_counter() - start
    except KernelUnavailableError as error:
        if mode == "fp8" or options:
            raise NotRun(str(error)) from error
        raise
    except RuntimeError as error:
        if options:  # a library refuses
            raise NotRun(f"{type(error).__name__}: {error}"[:500]) from error
        raise
    replay, walls, replays = replay_of(engine, batch), list[float](), list[Callable[[], float]]()
    begin = time.monotonic()
    for done in range(settings.rounds):
        walls.append(wall(lambda: engine.generate(lr, seed=1), device))
        if replay is not None and done < FEW_ROUNDS:
            replays.append(replay())
        if done >= 4 and (time.monotonic() - begin > SECONDS or clock.left < 2):
            break
    wait(device)
    cost = sum_of_costs(settings, batch, 1 if mode == "fp8" else engine.dtype.itemsize)
    result: Result = {
        "mode": mode,
        "batch": batch,
        "wall_s": spread(walls),
        "per_image_s": spread(walls)["median"] / batch,
        "first_call_s": first,  # compiles, plans and captures
        "image_mean": images.double().mean().item(),
        "image_std": images.double().std().item(),
        **held.facts,
        **cost,
    }
    if replays:
        result["replay_s"] = spread([value() for value in replays])
    if device.type == "cuda":
        result |= {"peak_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved()}
    return result


def wall(run: Callable[[], Any], device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def sum_of_costs(settings: Settings, batch: int, element: int) -> dict[str, int]:
    """Arithmetic and least traffic of a batch, by the ops' own cost models."""
    costs = stage_costs(settings.config, batch, element).values()
    return {"flops": sum(c.flops for c in costs), "bytes": sum(c.bytes for c in costs)}


def replay_of(engine: Engine, batch: int) -> Callable[[], Callable[[], float]] | None:
    """Replays the graph of a batch and gives the seconds between events around it, once they have passed."""
    graphs = engine._pipeline._graphs
    if graphs is None:
        return None
    captured = next((c for c in graphs._programs.values() if c.inputs[-1].shape[0] == batch), None)
    if captured is None:
        return None

    def replay() -> Callable[[], float]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        captured.replay()
        end.record()
        return lambda: begin.elapsed_time(end) / 1e3

    return replay


def stages(held: Held, settings: Settings, mode: str, batch: int) -> Result:
    """Time of each stage inside one graph. A diagnosis that looks into the engine: where it cannot, nothing failed."""
    if settings.device != "cuda":
        raise NotRun("events are a GPU's")
    engine = held.get(mode)
    try:
        times = stage_times(engine, random_input(settings.config, batch, settings.torch_device), settings.rounds)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise NotRun(f"{type(error).__name__}: {error}"[:500]) from error
    costs = stage_costs(settings.config, batch, engine.dtype.itemsize)
    return {
        "batch": batch,
        "stages": {
            name: {**spread(values), "flops": costs[name].flops, "bytes": costs[name].bytes}
            for name, values in times.items()
        },
    }


def stage_times(engine: Engine, lr: torch.Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of each stage in replays of one graph of the whole image, by events that the graph itself records."""
    pipeline, batch = engine._pipeline, len(lr)
    names = pipeline.stages(True, True)
    unset: dict[str, Any] = dict.fromkeys(("guidance_scale", "top_k", "top_p", "refiner_temperature"))
    request, seeds = engine._request(batch, 1, labels=0, seed=1, temperature=1.0, **unset)
    marks = {name: torch.cuda.Event(enable_timing=True, external=True) for name in ("begin", *names)}

    @torch.inference_mode()
    def image() -> None:
        marks["begin"].record()
        latent, _ = pipeline._latent(lr, request, seeds, None, True, clock=lambda stage, *latent: marks[stage].record())
        pipeline._decoded(latent)
        marks["decoder"].record()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        image()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        image()
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(min(rounds, FEW_ROUNDS)):
        graph.replay()
        torch.cuda.synchronize()
        for before, name in itertools.pairwise(("begin", *names)):
            times[name].append(marks[before].elapsed_time(marks[name]) / 1e3)
    return times
