"""One call, all contestants: each is held to the reference, then all that passed are timed in interleaved rounds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gpu_suite.calls import Arguments, Call, by_name
from benchmarks.gpu_suite.checks import WINOGRAD, tokens_follow, written, written_by
from benchmarks.gpu_suite.op_times import input_sets
from benchmarks.gpu_suite.timing import Runner, interleaved_rounds, runner
from benchmarks.gpu_suite.values import real_arguments
from benchmarks.kernels.contestants import Contestant
from tests.kernels.harness import poisoned_memory, to_float64
from tests.numerics import assert_accurate, relative_error
from varsr_engine.commands.selftest import ROUNDINGS
from varsr_engine.dispatch import Backend, use_backend

Tensors = list[torch.Tensor]


@dataclass
class Outcome:
    """What became of a contestant.

    failed, not_run: why it was not timed. how: by CUDA graph, events or wall clock. seconds: of a call, in each round.
    """

    failed: str = ""
    not_run: str = ""
    how: str = ""
    seconds: list[float] = field(default_factory=list)


def compare(
    call: Call, chosen: dict[str, Contestant], device: torch.device, rounds: int, most_seconds: float
) -> dict[str, Outcome]:
    """The outcome of each of the chosen contestants. rounds=0 checks them and times nothing."""
    outcomes: dict[str, Outcome] = {}
    runners: dict[str, Runner] = {}
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the pools of the last call's graphs
        torch.compiler.reset()  # what was compiled for the last call counts against dynamo's limit of shapes
        exact, eager = expected(call, device)
        sets = {form: made_for(form, lambda: input_sets(call, device)) for form in {c.form for c in chosen.values()}}
        for name, contestant in chosen.items():
            outcomes[name] = check(call, contestant, device, eager, exact)
            if not rounds or outcomes[name].failed or outcomes[name].not_run:
                continue
            try:
                runners[name] = runner([bound(contestant, args) for args in sets[contestant.form]], device)
                outcomes[name].how = runners[name].how
            except Exception as problem:
                outcomes[name] = broken(contestant, problem)
        if runners:
            for name, seconds in interleaved_rounds(runners, rounds, device, most_seconds).items():
                outcomes[name].seconds = seconds
    return outcomes


def bound(contestant: Contestant, args: Arguments) -> Callable[[], Any]:
    return lambda: contestant.run(args)


def made_for(form: Backend, make: Callable[[], Any]) -> Any:
    """What `make` makes, weights in the form that the backend multiplies with."""
    with use_backend(form):
        return make()


def expected(call: Call, device: torch.device) -> tuple[Tensors, Tensors]:
    """The reference's results in float64, and in the call's own dtype, on the same, already rounded, inputs."""
    exact = written(call, to_float64(made_for("torch", lambda: real_arguments(call, device))), "torch")
    return exact, written(call, made_for("torch", lambda: real_arguments(call, device)), "torch")


def check(call: Call, contestant: Contestant, device: torch.device, eager: Tensors, exact: Tensors) -> Outcome:
    """Run it once, and hold what computes the whole op to the rule of tests/numerics.py: a failure, whoever's it is."""
    args = made_for(contestant.form, lambda: real_arguments(call, device))
    if (reason := contestant.why_not(args)) is not None:
        return Outcome(not_run=reason)
    try:
        with poisoned_memory() if contestant.ours else contextlib.nullcontext():
            mine = written_by(call, args, contestant.run(args))
    except Exception as problem:
        return broken(contestant, problem)
    try:
        if contestant.whole:
            winograd = contestant.name == "cpu" and call.op in WINOGRAD
            compare_results(call, args, mine, eager, exact, winograd)
    except (AssertionError, ValueError) as problem:
        return Outcome(failed=str(problem))
    return Outcome()


def broken(contestant: Contestant, problem: Exception) -> Outcome:
    """An error while it ran: a failure of the engine's code; what a library refuses is named."""
    message = f"{type(problem).__name__}: {problem}"[:500]
    return Outcome(failed=message) if contestant.ours else Outcome(not_run=message)


def compare_results(
    call: Call, args: Arguments, mine: Tensors, eager: Tensors, exact: Tensors, winograd: bool = False
) -> None:
    """Raises AssertionError or ValueError, which say what is wrong, unless every result is as exact as the rule asks.

    winograd: the largest error of a map passes the bound here and there, as in the GPU suite's checks; the rule of the
    mean square holds.
    """
    for i, (actual, plain, truth) in enumerate(zip(mine, eager, exact, strict=True)):
        if winograd:
            error, allowed = relative_error(actual, truth), ROUNDINGS * torch.finfo(actual.dtype).eps
            assert error <= allowed, f"result {i}: relative error {error:.1e} > {allowed:.1e}"
        elif actual.is_floating_point():
            assert_accurate(actual, plain, truth.double(), what=f"result {i}")
    if call.op == "guided_sample":
        tokens_follow(mine, by_name(call.op, args)["sampling"])
