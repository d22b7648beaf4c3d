"""Each op at the shapes of an image: the engine's kernels beside torch's composition and libraries, interleaved."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_suite.calls import Arguments, Call, every_call
from benchmarks.gpu_suite.ceilings import l2_bytes
from benchmarks.gpu_suite.contestants import LIBRARY_BACKENDS, Contestant, automatic_choice, backends, libraries
from benchmarks.gpu_suite.settings import Settings, torch_dtype
from benchmarks.gpu_suite.timing import Runner, interleave, runner
from benchmarks.gpu_suite.values import bytes_of, real_arguments
from benchmarks.gpu_suite.work import Clock, Item, Result

MOST_SETS = 32
SECONDS = 1.5  # of rounds an op, at most


def items(settings: Settings, clock: Clock) -> list[Item]:
    """The ops of one image first, then those of a batch; training's once."""
    found = []
    for batch in settings.ops_batches:
        calls = every_call(settings.config, batch, torch_dtype(settings.compute_dtype), fp8=not settings.dry_run)
        if batch != settings.ops_batches[0]:
            calls = [call for call in calls if call.stage != "training"]
        found += [Item(call.name, partial(measure, call, settings)) for call in calls]
    return found


def input_sets(call: Call, device: torch.device) -> list[Arguments]:
    """Enough different inputs that none is still in the second-level cache when its turn comes again."""
    first = real_arguments(call, device)
    wanted = 2 * l2_bytes() // max(1, bytes_of(first)) + 2
    most = 2 if device.type == "cpu" else MOST_SETS
    return [first, *(real_arguments(call, device, i) for i in range(1, min(wanted, most)))]


def measure(call: Call, settings: Settings) -> Result:
    device = settings.torch_device
    if call.backward:
        return measure_backward(call, settings)
    with torch.inference_mode():
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the pools of the last item's graphs
        sets = input_sets(call, device)
        contestants = backends(call, sets[0]) | (libraries(call) if device.type == "cuda" else {})
        return timed(call, contestants, sets, settings, automatic_choice(call, sets[0]))


def measure_backward(call: Call, settings: Settings) -> Result:
    """Forward and backward: issued one by one, as autograd does, which at this size hides no launch costs."""
    sets = input_sets(call, settings.torch_device)
    sets = [tuple(t.requires_grad_() if isinstance(t, torch.Tensor) else t for t in args) for args in sets]

    def with_gradients(forward: Contestant) -> Contestant:
        def run(args: Arguments) -> Any:
            return torch.autograd.grad(forward(args).sum(), args[:3])

        return run

    contestants = {name: with_gradients(run) for name, run in backends(call, sets[0]).items()}
    return timed(call, contestants, sets, settings, automatic_choice(call, sets[0]), capture=False)


def timed(
    call: Call,
    contestants: dict[str, Contestant],
    sets: list[Arguments],
    settings: Settings,
    automatic: str,
    capture: bool = True,
) -> Result:
    device, runners, errors = settings.torch_device, dict[str, Runner](), dict[str, str]()

    def bound(run: Contestant, args: Arguments) -> Callable[[], Any]:
        return lambda: run(args)

    for name, contestant in contestants.items():
        try:
            runners[name] = runner([bound(contestant, args) for args in sets], device, capture)
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"[:500]
            if device.type == "cuda":
                torch.cuda.synchronize()  # raises where the context is broken: the item fails
    times = interleave(runners, settings.rounds, device, SECONDS)
    ours = set(errors) & set(backends(call, sets[0])) - set(LIBRARY_BACKENDS)
    cost = call.cost
    return {
        "status": "FAILED" if ours else "ok",
        **({"error": "; ".join(f"{name}: {errors[name]}" for name in sorted(ours))} if ours else {}),
        "op": call.op,
        "stage": call.stage,
        "batch": call.batch,
        "count": call.count,
        "variant": call.variant,
        "flops": cost.flops,
        "bytes": cost.bytes,
        "input_sets": len(sets),
        "automatic": automatic,
        "times": times,
        "not_timed": errors,
    }
