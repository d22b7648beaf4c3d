"""refiner_embed: silu(cond + time), and x W^T + b for both branches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.harness import check, each_backend, each_dtype, each_layout, each_size, normal, raises
from varsr_engine.kernels import refiner_embed
from varsr_engine.kernels.linear import prepare_linear

backends = each_backend("refiner_embed")
Arguments = tuple[Tensor, ...]


def inputs(M: int, Z: int, W: int, dtype: torch.dtype) -> Arguments:
    """As in the engine: time and state in float32, the rest in the compute dtype."""
    cond, time, x = normal(2 * M, W, dtype=dtype), normal(W), normal(M, Z)
    return cond, time, x, normal(W, Z, dtype=dtype, std=max(Z, 1) ** -0.5), normal(W, dtype=dtype, std=0.1)


def formula(cond: Tensor, time: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.stack([(row + time) / (1 + torch.exp(-row - time)) for row in cond]) if len(cond) else cond
    h = torch.einsum("mz,wz->mw", x, weight) + bias
    return y, torch.cat((h, h))


@backends
@each_dtype()
@each_size(varsr=(9, 16, 160), odd=(35, 7, 67), one=(1, 1, 1), empty=(0, 8, 16), full=(1024, 32, 1024))
def test_formula(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    y, h = check(refiner_embed, inputs(*size, dtype), backend=backend, formula=formula)
    assert y.dtype == dtype and h.dtype == torch.float32


@backends
@each_dtype()
def test_y_rounds_once(backend: str, dtype: torch.dtype) -> None:
    """Whatever cond's dtype, the sum and its SiLU are computed in float32."""
    cond, *rest = inputs(9, 8, 64, dtype)
    for args in ((cond, *rest), (cond.float(), *rest)):

        def only_y(*args: Any, backend: str = "torch") -> Tensor:
            return refiner_embed(*args, backend=backend)[0]

        check(only_y, args, backend=backend, formula=lambda *a: formula(*a)[0], rounds_once=True)


@backends
@each_dtype()
def test_both_tails(backend: str, dtype: torch.dtype) -> None:
    """Sums from -180 to 180: exp overflows float32 on the left, and silu is 0 there."""
    _, time, *rest = inputs(4, 8, 32, dtype)
    cond = torch.linspace(-180, 180, 8 * 32).view(8, 32).to(time.device, dtype)
    check(refiner_embed, (cond, time, *rest), backend=backend, formula=formula)


@backends
@each_layout
@each_dtype(torch.float32, torch.float16)
def test_non_contiguous(backend: str, layout: Any, dtype: torch.dtype) -> None:
    check(refiner_embed, tuple(map(layout, inputs(6, 8, 32, dtype))), backend=backend, formula=formula)


@backends
def test_prepared_weight(backend: str) -> None:
    """In the form that this machine multiplies with, as in the engine."""
    cond, time, x, weight, bias = inputs(6, 32, 64, torch.float32)

    def prepared(cond: Tensor, time: Tensor, x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Any:
        return refiner_embed(cond, time, x, prepare_linear(weight), bias, backend=backend)

    check(prepared, (cond, time, x, weight, bias), backend=backend, formula=formula)


def test_gradients() -> None:
    args = [t.cpu().double().requires_grad_() for t in inputs(2, 3, 4, torch.float64)]
    assert torch.autograd.gradcheck(refiner_embed, args)


SHAPES: dict[str, tuple[int, ...]] = {"cond": (6, 8), "time": (8,), "x": (3, 2), "weight": (8, 2), "bias": (8,)}


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("cond", (3, 8), "cond must be (2M, W) = (6, 8), got (3, 8)"),
        ("time", (1, 8), "time must be (W,) = (8,), got (1, 8)"),
        ("x", (1, 3, 2), "x must be (M, Z), got shape (1, 3, 2)"),
        ("weight", (8, 3), "weight must be (W, Z) = (8, 2), got (8, 3)"),
        ("bias", (2,), "bias must be (W,) = (8,), got (2,)"),
    ],
)
def test_bad_shape(name: str, shape: tuple[int, ...], message: str) -> None:
    with raises(ValueError, f"refiner_embed: {message}"):
        refiner_embed(**{k: torch.zeros(s) for k, s in (SHAPES | {name: shape}).items()})
