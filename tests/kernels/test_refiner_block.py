"""refiner_block: x + gate * mlp(layer_norm(x) * (1 + scale) + shift)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.harness import (
    ROUNDINGS,
    check,
    each_backend,
    each_dtype,
    each_layout,
    each_size,
    map_tensors,
    normal,
    raises,
    run_case,
    to_float64,
)
from tests.numerics import relative_error
from varsr_engine.kernels import refiner_block
from varsr_engine.kernels.refiner_block import RefinerBlockWeights

backends = each_backend("refiner_block")
Arguments = tuple[Any, ...]


def inputs(R: int, W: int, dtype: torch.dtype, mean: float = 0.0) -> Arguments:
    """As in the engine: rows, modulation and norm in float32, the two linear layers in the compute dtype."""
    weights = RefinerBlockWeights(
        norm_weight=normal(W, mean=1.0, std=0.2),
        norm_bias=normal(W, std=0.2),
        in_weight=normal(W, W, dtype=dtype, std=W**-0.5),
        in_bias=normal(W, dtype=dtype, std=0.1),
        out_weight=normal(W, W, dtype=dtype, std=W**-0.5),
        out_bias=normal(W, dtype=dtype, std=0.1),
    )
    return normal(R, W, mean=mean), normal(R, W, std=0.5), normal(R, W, std=0.5), normal(R, W), weights


def formula(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    gate: Tensor,
    weights: RefinerBlockWeights,
    eps: float = 1e-6,
    out: Tensor | None = None,
) -> Tensor:
    result = torch.zeros_like(x)
    for r in range(x.shape[0]):
        centred = x[r] - x[r].sum() / x.shape[1]
        normalised = centred / ((centred * centred).sum() / x.shape[1] + eps) ** 0.5
        h = (normalised * weights.norm_weight + weights.norm_bias) * (1 + scale[r]) + shift[r]
        h = weights.in_weight @ h + weights.in_bias
        h = h / (1 + torch.exp(-h))
        result[r] = x[r] + gate[r] * (weights.out_weight @ h + weights.out_bias)
    return result


@backends
@each_dtype()
@each_size(varsr=(18, 64), odd=(7, 37), empty=(0, 16), full=(2048, 1024))
def test_formula(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    result = check(refiner_block, inputs(*size, dtype), backend=backend, formula=formula)
    assert result.dtype == torch.float32


@backends
@each_dtype()
def test_one_value(backend: str, dtype: torch.dtype) -> None:
    """Held to the formula alone: where torch's several roundings of one value happen to cancel, it is no measure."""
    args = inputs(1, 1, dtype)
    result = run_case(refiner_block, args, None, backend)
    assert relative_error(result, formula(*to_float64(args))) <= ROUNDINGS * torch.finfo(dtype).eps


@backends
def test_eps(backend: str) -> None:
    x, *rest = inputs(4, 32, torch.float32)
    check(refiner_block, (x * 0.1, *rest, 0.05), backend=backend, formula=formula)


@backends
@each_dtype()
def test_in_place(backend: str, dtype: torch.dtype) -> None:
    args = inputs(9, 48, dtype)

    def in_place(x: Tensor, *rest: Any, backend: str) -> Tensor:
        assert refiner_block(x, *rest, out=x, backend=backend) is x
        return x

    check(in_place, args, backend=backend, formula=formula)
    check(refiner_block, args, {"out": args[0]}, backend=backend, formula=formula)


@backends
def test_without_out_the_rows_stay(backend: str) -> None:
    def rows_after(x: Tensor, *rest: Any, backend: str) -> Tensor:
        refiner_block(x, *rest, backend=backend)
        return x

    args = inputs(5, 16, torch.float32)
    assert torch.equal(run_case(rows_after, args, None, backend), args[0])


@backends
@each_dtype()
def test_large_mean(backend: str, dtype: torch.dtype) -> None:
    """A variance from E[x^2] - E[x]^2 in float32 is off by a tenth here; the mean's own rounding costs three digits."""
    args = inputs(6, 48, dtype, mean=1e3)
    no_skip = (torch.zeros_like(args[0]), *args[1:])

    def update(x: Tensor, *rest: Any, backend: str = "torch") -> Tensor:
        return refiner_block(x, *rest, backend=backend) - x

    roundings = ROUNDINGS * 1e3 if dtype == torch.float32 else 2 * ROUNDINGS
    check(update, args, backend=backend, formula=lambda *a: formula(*a) - a[0], roundings=roundings)
    check(refiner_block, no_skip, backend=backend, formula=formula)


@backends
@each_dtype()
def test_rows_are_independent(backend: str, dtype: torch.dtype) -> None:
    """A token's result does not depend on how many others there are, up to the order of summation."""
    x, shift, scale, gate, weights = inputs(8, 32, dtype)
    whole = run_case(refiner_block, (x, shift, scale, gate, weights), None, backend)
    part = run_case(refiner_block, (*(t[3:5] for t in (x, shift, scale, gate)), weights), None, backend)
    assert (whole[3:5] - part).abs().max() <= ROUNDINGS * torch.finfo(dtype).eps * whole.abs().max()


@backends
@each_layout
@each_dtype(torch.float32, torch.float16)
def test_non_contiguous(backend: str, layout: Any, dtype: torch.dtype) -> None:
    check(refiner_block, map_tensors(inputs(6, 32, dtype), layout), backend=backend, formula=formula)


@backends
@each_dtype()
def test_modulation_from_one_product(backend: str, dtype: torch.dtype) -> None:
    """Shift, scale and gate are column ranges of one matrix in the compute dtype, as in the engine."""
    x, _, _, _, weights = inputs(6, 32, dtype)
    parts = normal(6, 5 * 32, dtype=dtype).split(32, dim=1)[1:4]
    check(refiner_block, (x, *parts, weights), {"out": x}, backend=backend, formula=formula)


def test_gradients() -> None:
    rows, weights = inputs(2, 4, torch.float64)[:4], inputs(2, 4, torch.float64)[4]
    args = [t.cpu().double().requires_grad_() for t in (*rows, *weights)]
    assert torch.autograd.gradcheck(lambda *a: refiner_block(*a[:4], RefinerBlockWeights(*a[4:])), args)


SHAPES: dict[str, tuple[int, ...]] = {"x": (3, 8), "shift": (3, 8), "scale": (3, 8), "gate": (3, 8)}


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (1, 3, 8), "x must be (R, W), got shape (1, 3, 8)"),
        ("shift", (1, 8), "shift must be (R, W) = (3, 8), got (1, 8)"),
        ("scale", (8,), "scale must be (R, W) = (3, 8), got (8,)"),
        ("gate", (3, 7), "gate must be (R, W) = (3, 8), got (3, 7)"),
    ],
)
def test_bad_shape(name: str, shape: tuple[int, ...], message: str) -> None:
    weights = inputs(3, 8, torch.float32)[4]
    with raises(ValueError, f"refiner_block: {message}"):
        refiner_block(**{k: torch.zeros(s) for k, s in (SHAPES | {name: shape}).items()}, weights=weights)


@pytest.mark.parametrize("name", ["in_weight", "out_weight"])
def test_bad_weight(name: str) -> None:
    weights = inputs(3, 8, torch.float32)[4]._replace(**{name: torch.zeros(8, 9)})
    with raises(ValueError, f"refiner_block: {name} must be (W, W) = (8, 8), got (8, 9)"):
        refiner_block(**{k: torch.zeros(s) for k, s in SHAPES.items()}, weights=weights)
