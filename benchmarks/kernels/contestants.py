"""Who is timed at a call: torch's reference, the engine's backends, torch.compile of the reference, and libraries."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu_suite.calls import Arguments, Call, by_name
from benchmarks.gpu_suite.contestants import (
    LIBRARY_BACKENDS,
    REFERENCE,
    Named,
    addmm,
    enlarged_convolution,
    libraries,
    searched_convolution,
)
from varsr_engine.dispatch import OPS, Backend

COMPILED = "torch.compile"
SLOW_TO_COMPILE = {"philox_normal": "a C++ compiler takes more than a minute over its rounds, which are written out"}


@dataclass(frozen=True)
class Contestant:
    """run: the call on its arguments. form: the backend that says in which form weights come.

    whole: it computes the whole op, and is held to the reference. ours: the engine's own code, which has to run.
    """

    name: str
    run: Callable[[Arguments], Any]
    form: Backend = "torch"
    whole: bool = True
    ours: bool = False
    why_not: Callable[[Arguments], str | None] = lambda args: None


def contestants(call: Call, device: torch.device) -> dict[str, Contestant]:
    """By name, the reference first. Those for another kind of device are left out; the rest say why they cannot run."""
    op = OPS[call.op]

    def on(backend: Backend) -> Contestant:
        name = REFERENCE if backend == "torch" else backend
        form: Backend = "cpu" if backend == "cpu" else "torch"
        ours = backend != "torch" and backend not in LIBRARY_BACKENDS
        return Contestant(
            name,
            lambda args: op(*args, backend=backend),
            form,
            ours=ours,
            why_not=lambda args: op.reason_unsupported(backend, *args),
        )

    here = [b for b in op.backends if b in (("cpu",) if device.type == "cpu" else set(op.backends) - {"cpu", "torch"})]
    found = [on("torch"), *map(on, here), compiled(call, device)]
    outside = libraries(call) if device.type == "cuda" else cpu_libraries(call)
    return {c.name: c for c in [*found, *(Contestant(name, run, whole=False) for name, run in outside.items())]}


def compiled(call: Call, device: torch.device) -> Contestant:
    """torch.compile of the op's reference, for this call's shapes; compiled at its first run."""
    function = torch.compile(OPS[call.op]._impls["torch"], dynamic=False)
    return Contestant(COMPILED, lambda args: function(*args), why_not=lambda args: why_not_compiled(call.op, device))


def why_not_compiled(op: str, device: torch.device) -> str | None:
    """For a CPU, torch.compile writes C++."""
    if device.type != "cpu":
        return None
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"torch.compile needs a C++ compiler, and there is no {compiler}: install g++, or name another in CXX"
    return SLOW_TO_COMPILE.get(op)


def cpu_libraries(call: Call) -> dict[str, Callable[[Arguments], Any]]:
    """What torch's libraries for CPUs have for the call, or for its heaviest part: the name says which."""
    found = CPU_LIBRARIES.get(call.op, {})

    def on_names(run: Callable[[Named], Any]) -> Callable[[Arguments], Any]:
        return lambda args: run(by_name(call.op, args))

    return {name: on_names(run) for name, run in found.items()}


def attend(a: Named) -> Any:
    """torch's fused attention, without the copy into the layout that follows it in the engine."""
    return F.scaled_dot_product_attention(a["q"], a["k"], a["v"], scale=1.0)


PRODUCT: dict[str, Callable[[Named], Any]] = {"addmm, product alone": addmm}
CPU_LIBRARIES: dict[str, dict[str, Callable[[Named], Any]]] = {
    "linear": PRODUCT,
    "qkv_norm_rope_cache": PRODUCT,
    "gated_residual": PRODUCT,
    "mlp": PRODUCT,
    "guided_sample": PRODUCT,
    "scale_attention": {"SDPA": attend},
    "conv3x3": {"conv2d alone": searched_convolution},
    "upsample_conv": {"enlarged, conv2d": enlarged_convolution},
}
