"""adaln: layer_norm(x) * (1 + scale) + shift."""

from __future__ import annotations

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
    normal,
    raises,
    run_case,
)
from varsr_engine.kernels import adaln

backends = each_backend("adaln")


def inputs(B: int, L: int, C: int, dtype: torch.dtype, mean: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    return normal(B, L, C, dtype=dtype, mean=mean), normal(B, C, dtype=dtype, std=0.5), normal(B, C, dtype=dtype)


def formula(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-6, out: Tensor | None = None) -> Tensor:
    result = torch.zeros_like(x)
    B, L, C = x.shape
    for b in range(B):
        for l in range(L):
            centred = x[b, l] - x[b, l].sum() / C
            variance = (centred * centred).sum() / C
            result[b, l] = centred / (variance + eps) ** 0.5 * (1 + scale[b]) + shift[b]
    return result


@backends
@each_dtype()
@each_size(varsr=(2, 9, 96), odd=(3, 5, 77), one=(1, 1, 1), empty=(0, 4, 8), no_tokens=(2, 0, 8), full=(2, 1025, 1536))
def test_formula(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    check(adaln, inputs(*size, dtype), backend=backend, formula=formula, rounds_once=True)


@backends
def test_eps(backend: str) -> None:
    x, scale, shift = inputs(2, 3, 16, torch.float32)
    check(adaln, (x * 0.1, scale, shift, 0.05), backend=backend, formula=formula)


@backends
@each_dtype(torch.float16, torch.bfloat16)
def test_out_in_another_dtype_rounds_once(backend: str, dtype: torch.dtype) -> None:
    """The engine's call: float32 in, the compute dtype out."""
    args = inputs(2, 9, 96, torch.float32)
    out = torch.empty_like(args[0], dtype=dtype)
    result = check(adaln, args, {"out": out}, backend=backend, formula=formula, rounds_once=True, roundings=0.5)
    assert result.dtype == dtype


@backends
def test_out_is_returned(backend: str) -> None:
    def into_out(*args: Tensor, backend: str) -> Tensor:
        out = torch.empty_like(args[0])
        assert adaln(*args, out=out, backend=backend) is out
        return out

    check(into_out, inputs(2, 5, 48, torch.float32), backend=backend, formula=formula)


@backends
@each_dtype()
def test_large_mean(backend: str, dtype: torch.dtype) -> None:
    """A variance from E[x^2] - E[x]^2 in float32 has no correct digit here; the mean's own rounding costs four."""
    mean = 1e4 if dtype == torch.float32 else 50.0
    roundings = ROUNDINGS * (mean if dtype == torch.float32 else 1)
    check(adaln, inputs(2, 4, 96, dtype, mean), backend=backend, formula=formula, roundings=roundings)


@backends
def test_constant_row_gives_the_shift(backend: str) -> None:
    x, scale, shift = inputs(2, 3, 64, torch.float32)
    result = run_case(adaln, (torch.full_like(x, 0.5), scale, shift), None, backend)
    assert torch.equal(result, shift[:, None].expand_as(result))


@backends
@each_layout
@each_dtype(torch.float32, torch.float16)
def test_non_contiguous(backend: str, layout: object, dtype: torch.dtype) -> None:
    check(adaln, tuple(map(layout, inputs(2, 6, 64, dtype))), backend=backend, formula=formula)


def test_gradients() -> None:
    args = [t.cpu().requires_grad_() for t in inputs(2, 3, 5, torch.float64)]
    assert torch.autograd.gradcheck(adaln, args)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (2, 8), "adaln: x must be (B, L, C), got shape (2, 8)"),
        ("scale", (2, 7), "adaln: scale must be (B, C) = (2, 8), got (2, 7)"),
        ("shift", (1, 8), "adaln: shift must be (B, C) = (2, 8), got (1, 8)"),
        ("out", (2, 4, 8), "adaln: out must be (B, L, C) = (2, 3, 8), got (2, 4, 8)"),
    ],
)
def test_bad_shape(name: str, shape: tuple[int, ...], message: str) -> None:
    shapes = {"x": (2, 3, 8), "scale": (2, 8), "shift": (2, 8)} | {name: shape}
    with raises(ValueError, message):
        adaln(**{k: torch.zeros(s) for k, s in shapes.items()})


def test_bad_dtype() -> None:
    x, scale, shift = inputs(2, 3, 8, torch.float32)
    with raises(TypeError, "adaln: shift is torch.float16, x is torch.float32"):
        adaln(x, scale, shift.half())
