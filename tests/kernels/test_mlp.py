"""mlp: gelu_tanh(x W^T + b)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.kernels.harness import check, each_backend, each_dtype, each_layout, each_size, normal, raises
from varsr_engine.kernels import mlp
from varsr_engine.kernels.triton_backend import assume_capability

backends = each_backend("mlp")
each_capability = pytest.mark.parametrize("capability", [(9, 0), (8, 0)], ids=["tma", "pointers"])


def inputs(B: int, L: int, C: int, F: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    return normal(B, L, C, dtype=dtype), normal(F, C, dtype=dtype, std=C**-0.5), normal(F, dtype=dtype, std=0.1)


def formula(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    h = torch.zeros(*x.shape[:2], weight.shape[0], dtype=x.dtype, device=x.device)
    for f in range(weight.shape[0]):
        h[:, :, f] = (x * weight[f]).sum(-1) + bias[f]
    return 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))


@backends
@each_dtype()
@each_size(varsr=(2, 9, 48, 192), odd=(3, 5, 29, 67), one=(1, 1, 1, 1), empty=(0, 4, 8, 16), full=(2, 1024, 1536, 6144))
def test_formula(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    check(mlp, inputs(*size, dtype), backend=backend, formula=formula, rounds_once=True)


@backends
@each_dtype()
@each_size(varsr=(2, 9, 48, 192), odd=(3, 5, 29, 67), empty=(0, 4, 8, 16))
def test_out(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    def into_out(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
        out = torch.empty(*x.shape[:2], weight.shape[0], dtype=x.dtype, device=x.device)
        assert mlp(x, weight, bias, out=out, backend=backend) is out
        return out

    check(into_out, inputs(*size, dtype), backend=backend, formula=formula, rounds_once=True)


@backends
@each_dtype()
def test_both_tails(backend: str, dtype: torch.dtype) -> None:
    """h from -64 to 64, whose cube overflows no intermediate: gelu is 0 and h there."""
    x, weight = torch.linspace(-64, 64, 65)[None, :, None], torch.ones(1, 1)
    args = tuple(t.to(normal(1).device, dtype) for t in (x, weight, torch.zeros(1)))
    check(mlp, args, backend=backend, formula=formula)


@backends
@each_layout
@each_dtype(torch.float32, torch.float16)
def test_non_contiguous(backend: str, layout: object, dtype: torch.dtype) -> None:
    check(mlp, tuple(map(layout, inputs(2, 6, 32, 48, dtype))), backend=backend, formula=formula)


@contextlib.contextmanager
def launched(tile: tuple[int, ...], capability: tuple[int, int]) -> Iterator[None]:
    """Within this context the Triton kernel takes this tile, and as on such a device: 9.0 has TMA, 8.0 pointers."""
    module = pytest.importorskip("varsr_engine.kernels.mlp.triton_kernel")
    tile = pytest.importorskip("varsr_engine.kernels.triton_product").Tile(*tile)
    with assume_capability(*capability), mock.patch.object(module, "product_tile", lambda *_, **__: tile):
        yield


@each_capability
@pytest.mark.parametrize(
    "tile",
    [(16, 16, 32, 4, 2), (32, 64, 32, 4, 2), (64, 64, 32, 4, 2), (32, 32, 64, 4, 2)],
    ids=["two_sums", "swapped", "plain", "small"],
)
@pytest.mark.parametrize("C", [72, 70])
def test_triton_tiles(tile: tuple[int, ...], capability: tuple[int, int], C: int) -> None:
    """Rows, columns and terms that fill no tile. Rows of 70 elements are not aligned: pointers on any device."""
    with launched(tile, capability):
        check(mlp, inputs(2, 10, C, 35, torch.float16), backend="triton", formula=formula, rounds_once=True)


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (12, 0)])
@pytest.mark.parametrize("M", [1, 8, 18, 32, 64, 72, 162, 338, 648, 2050])
@pytest.mark.parametrize("N", [1024, 1536, 4608, 6144])
def test_triton_tiles_fit_in_shared_memory(capability: tuple[int, int], M: int, N: int) -> None:
    product_tile = pytest.importorskip("varsr_engine.kernels.triton_product").product_tile
    with assume_capability(*capability):
        tile = product_tile(M, N, 1536, torch.device("cpu"))
    memory = 99 if capability in ((8, 6), (12, 0)) else 163 if capability == (8, 0) else 227
    assert (2 if tile.m * tile.n <= 512 else 1) * (tile.m + tile.n) * tile.k * 2 * tile.stages <= memory * 1024
    assert tile.stages >= 2 and tile.n >= 16


def test_gradients() -> None:
    args = [t.cpu().requires_grad_() for t in inputs(2, 3, 4, 5, torch.float64)]
    assert torch.autograd.gradcheck(mlp, args)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (3, 4), "mlp: x must be (B, L, C), got shape (3, 4)"),
        ("weight", (8,), "mlp: weight must be (F, C), got shape (8,)"),
        ("weight", (8, 5), "mlp: weight must be (F, C) = (8, 4), got (8, 5)"),
        ("bias", (4,), "mlp: bias must be (F,) = (8,), got (4,)"),
        ("out", (2, 3, 4), "mlp: out must be (B, L, F) = (2, 3, 8), got (2, 3, 4)"),
    ],
)
def test_bad_shape(name: str, shape: tuple[int, ...], message: str) -> None:
    shapes = {"x": (2, 3, 4), "weight": (8, 4), "bias": (8,)} | {name: shape}
    with raises(ValueError, message):
        mlp(**{k: torch.zeros(s) for k, s in shapes.items()})


def test_bad_dtype_and_layout() -> None:
    x, weight, bias = inputs(2, 3, 4, 8, torch.float32)
    with raises(TypeError, "mlp: weight is torch.float16, x is torch.float32"):
        mlp(x, weight.half(), bias)
    with raises(TypeError, "mlp: out is torch.float16, x is torch.float32"):
        mlp(x, weight, bias, out=torch.zeros(2, 3, 8, dtype=torch.float16))
    with raises(ValueError, "mlp: out must be contiguous"):
        mlp(x, weight, bias, out=torch.zeros(2, 8, 3).mT)
