"""gated_residual: residual + gate * (x W^T + b)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.kernels.harness import check, each_backend, each_dtype, each_layout, each_size, normal, raises, run_case
from varsr_engine.kernels import gated_residual
from varsr_engine.kernels.triton_backend import assume_capability

backends = each_backend("gated_residual")
each_capability = pytest.mark.parametrize("capability", [(9, 0), (8, 0)], ids=["tma", "pointers"])


def inputs(B: int, L: int, K: int, C: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """residual, x, weight, bias, gate: as in the engine, the residual stream and its gate stay float32."""
    weight = normal(C, K, dtype=dtype, std=K**-0.5)
    return normal(B, L, C), normal(B, L, K, dtype=dtype), weight, normal(C, dtype=dtype), normal(B, C)


def formula(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, gate: Tensor, out: object = None) -> Tensor:
    update = torch.zeros_like(residual)
    for c in range(weight.shape[0]):
        update[:, :, c] = (x * weight[c]).sum(-1) + bias[c]
    return residual + update * gate.unsqueeze(1).repeat(1, x.shape[1], 1)


@backends
@each_dtype()
@each_size(
    varsr=(2, 9, 64, 64),
    wide=(2, 4, 192, 48),
    odd=(3, 5, 37, 29),
    one=(1, 1, 1, 1),
    empty=(0, 4, 8, 8),
    full=(2, 1024, 6144, 1536),
)
def test_formula(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    result = check(gated_residual, inputs(*size, dtype), backend=backend, formula=formula)
    assert result.dtype == torch.float32


@backends
@each_dtype()
def test_in_place(backend: str, dtype: torch.dtype) -> None:
    args = inputs(2, 9, 64, 48, dtype)

    def in_place(residual: Tensor, *rest: Tensor, backend: str) -> Tensor:
        assert gated_residual(residual, *rest, out=residual, backend=backend) is residual
        return residual

    check(in_place, args, backend=backend, formula=formula)
    check(gated_residual, args, {"out": args[0]}, backend=backend, formula=formula)


@backends
def test_without_out_the_residual_stays(backend: str) -> None:
    def residual_after(residual: Tensor, *rest: Tensor, backend: str) -> Tensor:
        gated_residual(residual, *rest, backend=backend)
        return residual

    args = inputs(2, 4, 16, 16, torch.float32)
    assert torch.equal(run_case(residual_after, args, None, backend), args[0])


@backends
@each_dtype()
def test_large_residual_keeps_small_updates(backend: str, dtype: torch.dtype) -> None:
    """The sum is float32: a residual of 4096 plus an update below float16's spacing there."""
    residual, x, weight, bias, gate = inputs(2, 4, 32, 32, dtype)
    args = (torch.full_like(residual, 4096.0), x, weight, bias, gate * 1e-2)
    change = run_case(gated_residual, args, None, backend).double() - 4096
    expected = formula(*(t.double() for t in args)) - 4096
    spacing = 2.0**-11  # of float32 at 4096
    assert (change - expected).abs().max() <= spacing + torch.finfo(dtype).eps * expected.abs().max() * 2
    assert (change != 0).any()


@backends
@each_layout
@each_dtype(torch.float32, torch.float16)
def test_non_contiguous(backend: str, layout: object, dtype: torch.dtype) -> None:
    check(gated_residual, tuple(map(layout, inputs(2, 6, 32, 48, dtype))), backend=backend, formula=formula)


@contextlib.contextmanager
def launched(tile: tuple[int, ...], capability: tuple[int, int]) -> Iterator[None]:
    """Within this context the Triton kernel takes this tile, and as on such a device: 9.0 has TMA, 8.0 pointers."""
    module = pytest.importorskip("varsr_engine.kernels.gated_residual.triton_kernel")
    tile = pytest.importorskip("varsr_engine.kernels.triton_product").Tile(*tile)
    with assume_capability(*capability), mock.patch.object(module, "product_tile", lambda *_, **__: tile):
        yield


@each_capability
@pytest.mark.parametrize(
    ("tile", "C"),
    [((16, 16, 32, 4, 2), 23), ((16, 64, 32, 4, 2), 75), ((64, 64, 32, 4, 2), 50), ((64, 256, 32, 4, 2), 150)],
    ids=["two_sums", "swapped", "plain", "halves"],
)
@pytest.mark.parametrize("K", [40, 37])
def test_triton_tiles(tile: tuple[int, ...], C: int, capability: tuple[int, int], K: int) -> None:
    """Tiles of several sequences, and sequences of several tiles. Rows of 37 elements are not aligned: pointers."""
    with launched(tile, capability):
        for B, L in ((5, 3), (2, 17)):
            check(gated_residual, inputs(B, L, K, C, torch.float16), backend="triton", formula=formula)


@each_capability
@pytest.mark.parametrize("K", [4096, 4100])
def test_triton_in_parts(capability: tuple[int, int], K: int) -> None:
    """Few rows of many terms: the terms are split among programs, of which the last has fewer."""
    module = pytest.importorskip("varsr_engine.kernels.gated_residual.triton_kernel")
    args = inputs(2, 9, K, 12, torch.float16)
    with assume_capability(*capability):
        assert module.cut(18, 12, K, args[1].device, 2)[1] > 1
        check(gated_residual, args, {"out": args[0]}, backend="triton", formula=formula)


def test_gradients() -> None:
    args = [t.cpu().double().requires_grad_() for t in inputs(2, 3, 4, 5, torch.float32)]
    assert torch.autograd.gradcheck(gated_residual, args)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("residual", (3, 8), "gated_residual: residual must be (B, L, C), got shape (3, 8)"),
        ("x", (3, 4), "gated_residual: x must be (B, L, K), got shape (3, 4)"),
        ("x", (2, 5, 4), "gated_residual: x must be (B, L, K) = (2, 3, 4), got (2, 5, 4)"),
        ("weight", (4, 8), "gated_residual: weight must be (C, K) = (8, 4), got (4, 8)"),
        ("bias", (4,), "gated_residual: bias must be (C,) = (8,), got (4,)"),
        ("gate", (2, 7), "gated_residual: gate must be (B, C) = (2, 8), got (2, 7)"),
        ("out", (2, 3, 4), "gated_residual: out must be (B, L, C) = (2, 3, 8), got (2, 3, 4)"),
    ],
)
def test_bad_shape(name: str, shape: tuple[int, ...], message: str) -> None:
    shapes = {"residual": (2, 3, 8), "x": (2, 3, 4), "weight": (8, 4), "bias": (8,), "gate": (2, 8)} | {name: shape}
    with raises(ValueError, message):
        gated_residual(**{k: torch.zeros(s) for k, s in shapes.items()})


def test_bad_dtype() -> None:
    residual, x, weight, bias, gate = inputs(2, 3, 4, 8, torch.float32)
    with raises(TypeError, "gated_residual: weight is torch.float16, x is torch.float32"):
        gated_residual(residual, x, weight.half(), bias, gate)
    with raises(TypeError, "gated_residual: gate is torch.float16, residual is torch.float32"):
        gated_residual(residual, x, weight, bias, gate.half())
