"""Every call of an op that an image makes, with its shapes, strides and constants: recorded from the engine itself.

The pipeline runs on meta tensors, which have no values and take no time; no list of shapes is kept by hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu_suite.costs import COSTS
from tests.aot.published import DEVICE, FakeCheckpoint, fake_request
from varsr_engine.config import ModelConfig
from varsr_engine.dispatch import OPS, Op, use_backend
from varsr_engine.engine import generation, weights
from varsr_engine.engine.generation import Pipeline
from varsr_engine.engine.quantization import Fp8Switches
from varsr_engine.kernels.quantized import values_of
from varsr_engine.kernels.refiner_update import DenoiseStep
from varsr_engine.kernels.spec import Cost

Arguments = tuple[Any, ...]

TRAINED_BATCH = 2  # of block_causal_attention, which training uses and no image does
FEW_LAYERS = 2
DRAWING = ("philox_normal", "refiner_update")  # their integers say which noise, and change no kernel
MAPS = ("conv3x3", "groupnorm_silu", "upsample_conv")
UNBOUNDED = (0, 5, 7, 9)  # scales at which attention is also checked without a bound on its scores


@dataclass(frozen=True)
class Call:
    """One op with its arguments as meta tensors, and how often an image makes it."""

    op: str
    args: Arguments
    stage: str
    batch: int
    count: int
    variant: str = ""
    backward: bool = False

    @property
    def named(self) -> dict[str, Any]:
        """The arguments by the names that the op's reference gives them."""
        return by_name(self.op, self.args)

    @cached_property
    def name(self) -> str:
        variant = f" {self.variant}" if self.variant else ""
        return f"{self.op} {self.stage} {SHAPES[self.op](self.named)}{variant} b{self.batch}"

    @property
    def cost(self) -> Cost:
        """By the op's own cost model; a backward pass as two and a half times the arithmetic, twice the traffic."""
        cost = COSTS[self.op](self.named)
        return cost + Cost(cost.flops * 5 // 2, cost.bytes * 2) if self.backward else cost

    @property
    def is_fp8(self) -> bool:
        return torch.float8_e4m3fn in dtypes_in(self.args)


def parameters(op: str) -> list[str]:
    """Names of an op's arguments, in order."""
    return list(inspect.signature(OPS[op]._impls["torch"]).parameters)


def by_name(op: str, args: Arguments) -> dict[str, Any]:
    return dict(zip(parameters(op), args, strict=False))


def dtypes_in(value: Any) -> set[torch.dtype]:
    if isinstance(value, torch.Tensor):
        return {value.dtype}
    return set[torch.dtype]().union(*map(dtypes_in, value)) if isinstance(value, tuple) else set()


def signature(op: str, args: Arguments) -> Any:
    """What tells calls apart: layouts and choices, not the constants of a step that change no kernel."""

    def of(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return tuple(value.shape), value.stride(), value.dtype
        if isinstance(value, DenoiseStep):
            return value.last
        if isinstance(value, tuple):
            return tuple(map(of, value))
        return None if isinstance(value, float) or (op in DRAWING and type(value) is int) else value

    return op, of(args)


def fake_pipeline(config: ModelConfig, dtype: torch.dtype, fp8: bool = False) -> Pipeline:
    """The engine's pipeline on weights without values; fp8: wherever the engine can."""
    everywhere = Fp8Switches(frozenset(range(config.depth)), frozenset(range(config.num_scales)))
    assumed = mock.patch.object(weights, "static_bound", lambda bound: bound)  # decided from values, once at load
    allowed = mock.patch.object(generation, "check_fp8", lambda device: None)
    with assumed, allowed:
        pipeline = Pipeline(FakeCheckpoint(config, dtype), DEVICE, dtype, fp8=everywhere if fp8 else None)
        for part in (pipeline._condition, pipeline._refiner, pipeline._decoder):
            part.run(lambda loaded: None)
    return pipeline


def record_image(
    config: ModelConfig, batch: int, dtype: torch.dtype, *, greedy: bool = True, fp8: bool = False
) -> list[Call]:
    """The different calls of one forward pass of `batch` images, in order of their first appearance.

    Layers between the first and the last make the same calls: two and three of them tell how often all do.
    """
    if config.depth <= FEW_LAYERS + 1:
        return record_all(config, batch, dtype, greedy, fp8)
    few, more = (record_all(replace(config, depth=d), batch, dtype, greedy, fp8) for d in (FEW_LAYERS, FEW_LAYERS + 1))
    layers = config.depth - FEW_LAYERS
    return [replace(a, count=a.count + layers * (b.count - a.count)) for a, b in zip(few, more, strict=True)]


def record_all(config: ModelConfig, batch: int, dtype: torch.dtype, greedy: bool, fp8: bool) -> list[Call]:
    found: dict[Any, Call] = {}
    pending: list[tuple[str, Arguments]] = []
    run, variant = Op.__call__, "fp8" if fp8 else "" if greedy else "sampled"

    def record(op: Op, *args: Any, backend: str | None = None, **kwargs: Any) -> Any:
        args = channels_last(args) if op.name in MAPS else args
        pending.append((op.name, args))
        return run(op, *args, backend="torch", **kwargs)

    def stage_ended(stage: str, latent: torch.Tensor | None = None) -> None:
        for op, args in pending:
            key = stage, signature(op, args)
            earlier = found.get(key, Call(op, args, stage, batch, 0, variant))
            found[key] = replace(earlier, count=earlier.count + 1)
        pending.clear()

    with use_backend("torch"), torch.inference_mode():
        pipeline, request = fake_pipeline(config, dtype, fp8), fake_request(batch, greedy=greedy)
        lr = torch.empty(batch, 3, config.image_side, config.image_side, device=DEVICE)
        with mock.patch.object(Op, "__call__", record):
            latent, _ = pipeline._latent(lr, request, request.seeds, None, True, clock=stage_ended)
            pipeline._decoded(latent)
            stage_ended("decoder")
    return list(found.values())


def channels_last(args: Arguments) -> Arguments:
    """Maps as a GPU's kernels leave them: on meta tensors torch forgets the layout."""
    done: dict[int, torch.Tensor] = {}

    def of(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim == 4:
            return done.setdefault(id(value), value.contiguous(memory_format=torch.channels_last))
        return value

    return tuple(map(of, args))


def every_call(config: ModelConfig, batch: int, dtype: torch.dtype, *, fp8: bool = True) -> list[Call]:
    """Those of an image, of sampled tokens, of attention without a bound, of FP8 products, and of training."""
    calls = record_image(config, batch, dtype)
    calls += [c for c in record_image(config, batch, dtype, greedy=False) if c.op == "guided_sample"]
    unbounded = [f"scale.{step}" for step in UNBOUNDED]
    for call in [c for c in calls if c.op == "scale_attention" and c.stage in unbounded]:
        args = tuple(None if name == "bound" else value for name, value in call.named.items())
        calls.append(replace(call, args=args, count=0, variant="unbounded"))
    if fp8:
        calls += [c for c in record_image(config, batch, dtype, fp8=True) if c.is_fp8]
    return calls + training_calls(config, dtype)


def in_dtype(calls: list[Call], recorded: torch.dtype, dtype: torch.dtype) -> list[Call]:
    """The calls, recorded in a 16-bit compute dtype, as an engine of another one makes them."""
    if dtype == recorded:
        return calls
    done: dict[int, torch.Tensor] = {}  # one that appears twice stays one

    def convert(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if value.dtype != recorded:
                return value
            if id(value) not in done:
                done[id(value)] = torch.empty_strided(value.shape, value.stride(), dtype=dtype, device=DEVICE)
            return done[id(value)]
        if isinstance(value, tuple):
            return value._make(map(convert, value)) if hasattr(value, "_make") else tuple(map(convert, value))
        return value

    return [replace(call, args=convert(call.args)) for call in calls]


def training_calls(config: ModelConfig, dtype: torch.dtype) -> list[Call]:
    """Teacher forcing's attention over the whole sequence, forward and backward."""
    shape = (TRAINED_BATCH, config.num_heads, sum(config.step_lengths), config.head_dim)
    q, k, v = (torch.empty(shape, dtype=dtype, device=DEVICE) for _ in range(3))
    args = (q, k, v, tuple(config.step_lengths))
    forward = Call("block_causal_attention", args, "training", TRAINED_BATCH, 0)
    return [forward, replace(forward, variant="forward and backward", backward=True)]


def product(a: dict[str, Any]) -> str:
    x, weight = values_of(a["x"]), values_of(a["weight"])
    return f"{x[..., 0].numel()}x{x.shape[-1]}->{weight.shape[0]}"


def size(name: str) -> Callable[[dict[str, Any]], str]:
    return lambda a: "x".join(map(str, a[name].shape))


def marks(a: dict[str, Any], **words: str) -> str:
    """The word of each argument that is there, and not False."""
    return "".join(f" {word}" for name, word in words.items() if a.get(name) is not None and a[name] is not False)


# A few words that tell a call of an op from its others.
SHAPES: dict[str, Callable[[dict[str, Any]], str]] = {
    "adaln": lambda a: size("x")(a) + ("" if a["out"] is not None else " for the head"),
    "qkv_norm_rope_cache": lambda a: f"{product(a)} q{a['num_queries']}",
    "scale_attention": lambda a: f"{a['q'].shape[0]}x{a['q'].shape[1]} {a['q'].shape[2]} on {a['k'].shape[2]}",
    "block_causal_attention": size("q"),
    "gated_residual": product,
    "linear": product,
    "mlp": product,
    "guided_sample": lambda a: product({"x": a["cond"], "weight": a["weight"]}) + marks(a, uncond="guided"),
    "scale_handoff": lambda a: f"{a['constants'].upsample.shape[1]}->{a['constants'].downsample.shape[0]}",
    "refiner_block": size("x"),
    "refiner_embed": size("cond"),
    "refiner_update": lambda a: size("hidden")(a) + (" last" if a["step"].last else ""),
    "groupnorm_silu": lambda a: size("x")(a) + marks(a, silu="silu"),
    "upsample_conv": lambda a: f"{a['x'].shape[1]}->{a['phases'].shape[2]} {a['x'].shape[2]}px",
    "conv3x3": lambda a: (
        f"{a['x'].shape[1]}->{a['weights'].weight.shape[0]} {a['x'].shape[2]}px"
        + marks(a, residual="+residual", silu="silu")
        + (f" /{a['stride']}" if a.get("stride", 1) != 1 else "")
    ),
    "philox_normal": lambda a: f"{a['seeds'].shape[0]}x{a['positions'].shape[-1]}x{a['count']}",
}
