"""Hopper's products, emulated: the ring of stages, the swizzle, tiles of every shape, and each epilogue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.cuda import emulation
from tests.kernels import test_qkv_norm_rope_cache
from tests.kernels.harness import normal, poisoned_memory
from tests.numerics import assert_accurate
from varsr_engine.kernels import cuda_product
from varsr_engine.kernels.quantized import QuantizedRows, dequantize, quantize_rows, quantize_weight

pytestmark = [
    pytest.mark.skipif(emulation.why_not() is not None, reason=f"not emulated: {emulation.why_not()}"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the emulator's tensors are on a CPU"),
]
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def number(tile: tuple[int, int]) -> int:
    return 1000 * tile[0] + tile[1]


def each_tile(tiles: cuda_product.Tiles) -> Any:
    return pytest.mark.parametrize("tile", [number(t) for t in tiles])


def in_every_order(function: Callable[[], Any], orders: tuple[int, ...] = emulation.ORDERS) -> Any:
    results = []
    for order in orders:
        with poisoned_memory(), emulation.on_cpu(order):
            results.append(function())
    assert all(emulation.same_bits(results[0], other) for other in results[1:])
    return results[0]


def operands(M: int, N: int, K: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return normal(M, K, dtype=dtype), normal(N, K, dtype=dtype, std=K**-0.5), normal(N, dtype=dtype)


def check_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, gelu: bool, tile: int) -> None:
    def reference(*args: torch.Tensor) -> torch.Tensor:
        y = F.linear(*args)
        return F.gelu(y, approximate="tanh") if gelu else y

    result = in_every_order(lambda: cuda_product.product(x, weight, bias, gelu=gelu, tile=tile))
    exact = reference(*(t.double() for t in (x, weight, bias)))
    assert_accurate(result, reference(x, weight, bias), exact, rms_slack=1.1)


@HALVES
@each_tile(cuda_product.PLAIN)
def test_tiles(tile: int, dtype: torch.dtype) -> None:
    """Two tiles of rows, the second with few; columns that end inside a tile; two steps of K, the second a part."""
    check_product(*operands(tile // 1000 + 3, tile % 1000 + 8, 72, dtype), False, tile)


@pytest.mark.parametrize(("M", "N", "K"), [(1, 8, 8), (5, 256, 64), (130, 16, 1032)])
def test_shapes(M: int, N: int, K: int) -> None:
    """One element of everything; whole tiles; more steps of K than the ring has stages, several times over."""
    check_product(*operands(M, N, K, torch.float16), True, 128128)


def test_a_block_takes_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Persistence: the ring goes on from tile to tile, wherever it stands."""
    monkeypatch.setattr(cuda_product, "multiprocessors", lambda device: 2)
    check_product(*operands(300, 264, 200, torch.float16), False, 128128)


@pytest.mark.parametrize("gelu", [False, True])
@each_tile(cuda_product.NARROW)
def test_e4m3(tile: int, gelu: bool) -> None:
    x = quantize_rows(normal(1, 70, 144), QuantizedRows.empty(1, 70, 144, 1, torch.device("cpu")))
    weight, bias = quantize_weight(normal(40, 144, std=1 / 12)), normal(40, dtype=torch.float16)
    result = in_every_order(lambda: cuda_product.product(x, weight, bias, gelu=gelu, tile=tile))

    def reference(dtype: torch.dtype) -> torch.Tensor:
        y = F.linear(dequantize(x)[0].to(dtype), dequantize(weight).to(dtype), bias.to(dtype))
        return F.gelu(y, approximate="tanh") if gelu else y

    assert_accurate(result, reference(torch.float32).half(), reference(torch.float64), rms_slack=1.1)


@HALVES
@each_tile(cuda_product.GATED)
def test_gated_residual(tile: int, dtype: torch.dtype) -> None:
    x, weight, bias = operands(2 * 70, 120, 80, dtype)
    residual, gate = normal(2, 70, 120), normal(2, 240)[:, 120:]

    def in_place() -> torch.Tensor:
        own = residual.clone()
        args = (own, x.view(2, 70, 80), weight, bias, gate)
        assert cuda_product.product_gated_residual(*args, out=own, tile=tile) is own
        return own

    def reference(dtype: torch.dtype) -> torch.Tensor:
        y = F.linear(*(t.to(dtype) for t in (x, weight, bias))).view(2, 70, 120)
        return residual.to(dtype) + gate[:, None].to(dtype) * y

    assert_accurate(in_every_order(in_place), reference(torch.float32), reference(torch.float64))


@HALVES
@each_tile(cuda_product.QKV)
@pytest.mark.parametrize("num_queries", [70, 2])
def test_qkv(tile: int, num_queries: int, dtype: torch.dtype) -> None:
    """Heads of q, k and v in one tile, the last of which has some of none; tiles of two sequences."""
    args = test_qkv_norm_rope_cache.inputs(2, 70, 1, 64, 75, 3, dtype)

    def run() -> tuple[torch.Tensor, ...]:
        k_cache, v_cache = (t.clone() for t in args[6:8])
        q = cuda_product.product_qkv(*args[:6], k_cache, v_cache, 3, num_queries, tile=tile)
        assert k_cache[:, :, :3].isnan().all() and v_cache[:, :, 73:].isnan().all()
        return q, k_cache[:, :, 3:73], v_cache[:, :, 3:73]

    exact_args = tuple(t.double() if isinstance(t, torch.Tensor) else t for t in args)
    exact = test_qkv_norm_rope_cache.formula(*exact_args, num_queries=num_queries)
    eager = test_qkv_norm_rope_cache.written(*args, num_queries=num_queries, backend="torch")
    for mine, plain, truth in zip(in_every_order(run), eager, exact, strict=True):
        assert_accurate(mine, plain, truth, rms_slack=1.1)


@HALVES
def test_argmax(dtype: torch.dtype) -> None:
    """Equal logits in several tiles and lanes: the lowest index, whichever block comes first."""
    x, weight, bias = operands(70, 264, 64, dtype)
    weight[[200, 77, 263]], bias[[200, 77, 263]] = weight[5].clone(), 30.0
    tokens, logits = in_every_order(lambda: cuda_product.product_argmax(x, weight, bias, tile=128128))
    exact = F.linear(*(t.double() for t in (x, weight, bias)))
    assert_accurate(logits, F.linear(x.float(), weight.float(), bias.float()), exact)
    assert (tokens == 77).all() and torch.equal(tokens, logits.argmax(-1))


def test_best_tile() -> None:
    """The published model's shapes on 132 multiprocessors: one exact wave of 132 tiles for N = 1536."""
    assert cuda_product.best_tile(2048, 1536, cuda_product.GATED, 132) == 192128
    assert cuda_product.best_tile(1152, 1536, cuda_product.GATED, 132) == 128112
    assert cuda_product.best_tile(1152, 4608, cuda_product.PLAIN, 132) == 128160
    for M, N, tiles in ((1, 8, cuda_product.PLAIN), (8, 4608, cuda_product.QKV), (4096, 6144, cuda_product.PLAIN)):
        m, n = divmod(cuda_product.best_tile(M, N, tiles, 132), 1000)
        assert (m, n) in tiles


@pytest.mark.parametrize(
    ("x", "weight", "bias", "reason"),
    [
        ((4, 12), (8, 12), torch.float16, "(N, K) is (8, 12): rows of x are not multiples of 16 bytes"),
        ((4, 16), (12, 16), torch.float16, "(N, K) is (12, 16): rows of x are not multiples"),
        ((4, 16), (8, 16), torch.float32, "bias is torch.float32, not torch.float16"),
    ],
)
def test_reasons(x: tuple[int, ...], weight: tuple[int, ...], bias: torch.dtype, reason: str) -> None:
    half = torch.float16
    args = torch.zeros(x, dtype=half), torch.zeros(weight, dtype=half), torch.zeros(weight[0], dtype=bias)
    assert reason in str(cuda_product.why_not_product(*args))
    assert "x is torch.float32" in str(cuda_product.why_not_product(args[0].float(), *args[1:]))
    fine = torch.zeros(4, 16, dtype=half), torch.zeros(8, 16, dtype=half), torch.zeros(8, dtype=half)
    assert cuda_product.why_not_product(*fine) is None
