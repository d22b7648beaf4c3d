"""linear: x W^T + b, W a matrix or its panels, and the panels themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.kernels.harness import check, each_backend, each_dtype, each_layout, each_size, normal, raises
from varsr_engine.kernels import cpu_library, linear
from varsr_engine.kernels.linear import cpu_kernel, prepare_linear
from varsr_engine.kernels.panels import as_matrix, matrix_shape, take_rows

backends = each_backend("linear")

no_library = cpu_library.why_not()
needs_library = pytest.mark.skipif(no_library is not None, reason=str(no_library))
# A weight's rows and columns are multiples of 32 (AVX-512) or 16 (AVX2); rows of x end before, on and after a tile of
# 14 or 6 and a block of 168 or 72; columns after a sum of 256, and after a block of 1536.
sizes = each_size(
    varsr=(18, 128, 64), refiner=(64, 192, 64), one_row=(1, 32, 32), tile=(14, 96, 288), tile_and_one=(15, 32, 32),
    blocks=(169, 64, 1600), empty=(0, 32, 64), full=(2048, 6144, 1536),
)  # fmt: skip


def inputs(M: int, N: int, K: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return normal(M, K, dtype=dtype), normal(N, K, dtype=dtype, std=K**-0.5), normal(N, dtype=dtype)


def packed(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x, cpu_kernel.pack(weight), bias


def formula(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    return (x[:, None] * as_matrix(weight)).sum(-1) + bias


@backends
@each_dtype()
@each_size(varsr=(18, 128, 64), odd=(7, 29, 67), one=(1, 1, 1), empty=(0, 8, 4))
def test_a_matrix(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    check(linear, inputs(*size, dtype), backend=backend, formula=formula)


@needs_library
@backends
@sizes
def test_panels(backend: str, size: tuple[int, ...]) -> None:
    check(linear, packed(*inputs(*size)), backend=backend, formula=formula)


@needs_library
@backends
@sizes
def test_out(backend: str, size: tuple[int, ...]) -> None:
    def into_out(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
        out = torch.empty(x.shape[0], bias.shape[0], dtype=x.dtype)
        assert linear(x, weight, bias, out=out, backend=backend) is out
        return out

    check(into_out, packed(*inputs(*size)), backend=backend, formula=formula)


@needs_library
@backends
def test_a_large_mean(backend: str) -> None:
    """Values around 1000 whose product with the weight cancels: what is left is what the order of sums decides."""
    x, weight, bias = inputs(20, 64, 512)
    weight = weight - weight.mean(1, keepdim=True)
    check(linear, packed(x + 1000, weight, bias), backend=backend, formula=formula, roundings=None)


@needs_library
@backends
@each_layout
def test_non_contiguous(backend: str, layout: Callable[[Tensor], Tensor]) -> None:
    x, weight, bias = inputs(18, 64, 96)
    check(linear, packed(layout(x), layout(weight), layout(bias)), backend=backend, formula=formula)


@needs_library
@backends
def test_some_rows_of_panels(backend: str) -> None:
    x, weight, bias = packed(*inputs(9, 192, 32))
    some = (x, take_rows(weight, 64, 128), bias[64:128])
    check(linear, some, backend=backend, formula=formula)
    assert torch.equal(as_matrix(some[1]), as_matrix(weight)[64:128])
    with pytest.raises(AssertionError, match="do not begin and end with a panel"):
        take_rows(weight, 8, 64)


@needs_library
def test_panels_hold_the_matrix() -> None:
    matrix = normal(96, 160).cpu()
    panels = cpu_kernel.pack(matrix)
    assert matrix_shape(panels) == (96, 160) and torch.equal(as_matrix(panels), matrix)
    assert as_matrix(matrix) is matrix and take_rows(matrix, 3, 7).shape == (4, 160)


def test_what_prepare_linear_packs() -> None:
    """Panels where there is a kernel for them, and only float32 of whole panels in each part; else the matrix."""
    weight = torch.randn(192, 64)
    assert (prepare_linear(weight).ndim == 3) == (no_library is None)
    assert (prepare_linear(weight, parts=3).ndim == 3) == (no_library is None)
    for kept, parts in ((weight.half(), 1), (torch.randn(192, 60), 1), (torch.randn(100, 64), 1), (weight, 8)):
        assert prepare_linear(kept, parts) is kept and cpu_kernel.why_not_packed(kept, parts)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (4,), "linear: x must be (M, K), got shape (4,)"),
        ("weight", (8,), "linear: weight must be (N, K), got shape (8,)"),
        ("weight", (8, 5), "linear: weight must be (N, K) = (8, 4), got (8, 5)"),
        ("weight", (2, 5, 4), "linear: weight must be (N, K) = (8, 4), got (8, 5)"),
        ("bias", (4,), "linear: bias must be (N,) = (8,), got (4,)"),
        ("out", (3, 4), "linear: out must be (M, N) = (3, 8), got (3, 4)"),
    ],
)
def test_bad_shape(name: str, shape: tuple[int, ...], message: str) -> None:
    shapes = {"x": (3, 4), "weight": (8, 4), "bias": (8,)} | {name: shape}
    with raises(ValueError, message):
        linear(**{k: torch.zeros(s) for k, s in shapes.items()})


def test_bad_dtype_and_layout() -> None:
    x, weight, bias = inputs(3, 8, 4)
    with raises(TypeError, "linear: weight is torch.float16, x is torch.float32"):
        linear(x, weight.half(), bias)
    with raises(TypeError, "linear: out is torch.float16, x is torch.float32"):
        linear(x, weight, bias, out=torch.zeros(3, 8, dtype=torch.float16))
    with raises(ValueError, "linear: out must be contiguous"):
        linear(x, weight, bias, out=torch.zeros(8, 3).mT)


def test_gradients() -> None:
    args = [t.cpu().requires_grad_() for t in inputs(2, 4, 3, torch.float64)]
    assert torch.autograd.gradcheck(linear, args)
