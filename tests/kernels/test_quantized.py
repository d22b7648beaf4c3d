"""FP8 operands: what quantizing keeps, and the ops that write and multiply them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.kernels.harness import (
    DEVICE,
    ROUNDINGS,
    check,
    each_backend,
    each_dtype,
    each_size,
    normal,
    raises,
    run_case,
    transposed,
)
from tests.kernels.test_adaln import formula as adaln_formula
from tests.kernels.test_adaln import inputs as adaln_inputs
from tests.kernels.test_gated_residual import formula as gated_residual_formula
from tests.kernels.test_mlp import formula as mlp_formula
from varsr_engine.dispatch import OPS
from varsr_engine.kernels import adaln, gated_residual, mlp, qkv_norm_rope_cache
from varsr_engine.kernels.quantized import (
    E4M3,
    GROUP,
    QuantizedRows,
    QuantizedWeight,
    dequantize,
    groups,
    quantize_rows,
    quantize_weight,
    values_of,
)
from varsr_engine.kernels.triton_backend import assume_capability

COMPUTE = each_dtype(torch.float32, torch.float16)
# Hopper's tensor cores add FP8 products up in about 14 bits, 128 at a time; the interpreter and references in float32.
SUMS = 2.0**-11 if DEVICE.type == "cuda" else 0.0
SMALLEST = 2.0**-9  # of e4m3's steps
CAPABILITIES = pytest.mark.parametrize("capability", [(9, 0), (8, 9)], ids=["tma", "pointers"])


def poisoned(B: int, L: int, K: int, G: int) -> QuantizedRows:
    """Rows to be written: a kernel that leaves some out leaves NaN."""
    rows = QuantizedRows.empty(B, L, K, G, DEVICE)
    rows.values.fill_(math.nan), rows.scale.fill_(math.nan)
    return rows


def rows(B: int, L: int, K: int, G: int) -> QuantizedRows:
    """Gaussian rows whose sizes differ from row to row and from group to group."""
    x = normal(B, L, K) * torch.exp(normal(B, L, groups(K)).repeat_interleave(GROUP, -1)[..., :K])
    return quantize_rows(x, poisoned(B, L, K, G))


def weight(N: int, K: int) -> QuantizedWeight:
    return quantize_weight(normal(N, K, std=K**-0.5) * torch.exp(normal(N, 1) / 2))


def numbers(q: QuantizedRows | QuantizedWeight) -> Tensor:
    """What quantized operands stand for, one column at a time."""
    result = torch.zeros(q.values.shape, dtype=torch.float64, device=q.values.device)
    for k in range(q.values.shape[-1]):
        rows_share = isinstance(q, QuantizedWeight) or q.scale.shape[-1] == 1
        scale = q.scale if isinstance(q, QuantizedWeight) else q.scale[..., 0 if rows_share else k // GROUP]
        result[..., k] = q.values[..., k].double() * scale
    return result


# --- quantizing ------------------------------------------------------------------------------------------------------


def test_a_weight_is_kept_to_e4m3_s_rounding_a_channel() -> None:
    w = normal(6, 300) * torch.tensor([[1e-30], [1e-3], [1.0], [7.0], [1e4], [1e30]], device=DEVICE)
    q = quantize_weight(w)
    assert q.values.dtype == E4M3 and q.scale.dtype == torch.float32
    exact, kept = w.double(), numbers(q)
    assert ((kept - exact).abs() <= 2.0**-4 * exact.abs() + SMALLEST / 2 * q.scale[:, None]).all()
    assert torch.equal(dequantize(q).double(), kept.float().double())
    largest = w.abs().argmax(dim=1, keepdim=True)
    assert (q.values.float().gather(1, largest).abs() == 448).all()  # nothing is lost where it is largest


@pytest.mark.parametrize(("K", "G"), [(77, 1), (300, 1), (300, 3), (128, 1), (1, 1)])
def test_rows_have_one_scale_or_one_each_128_columns(K: int, G: int) -> None:
    x = normal(2, 3, K)
    q = quantize_rows(x, poisoned(2, 3, K, G))
    for g in range(G):
        part = x if G == 1 else x[..., GROUP * g : GROUP * (g + 1)]
        assert torch.equal(q.scale[..., g], part.abs().amax(-1) / 448)
    kept = numbers(q)
    assert ((kept - x).abs() <= 2.0**-4 * x.abs() + SMALLEST / 2 * q.scale.amax(-1, keepdim=True)).all()
    assert torch.equal(dequantize(q), kept.float())


def test_zeros_and_the_smallest_numbers_survive() -> None:
    x = torch.zeros(1, 3, 20)
    x[0, 1, 3], x[0, 2, :] = 1e-45, 3e-39
    kept = dequantize(quantize_rows(x, poisoned(1, 3, 20, 1)))
    assert torch.equal(kept[0, 0], torch.zeros(20)) and torch.isfinite(kept).all()
    assert (kept - x).abs().max() <= 448 * 2.0**-126
    assert torch.equal(dequantize(quantize_weight(torch.zeros(2, 5))), torch.zeros(2, 5))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_does_not_become_one(bad: float) -> None:
    x = normal(1, 2, 20)
    x[0, 1, 7] = bad
    kept = dequantize(quantize_rows(x, poisoned(1, 2, 20, 1)))
    assert torch.isfinite(kept[0, 0]).all() and not torch.isfinite(kept[0, 1, 7])
    assert not torch.isfinite(dequantize(quantize_weight(x[0]))[1, 7])


# --- adaln -----------------------------------------------------------------------------------------------------------


def quantized_formula(y: Tensor, G: int) -> tuple[Tensor, Tensor]:
    """(values, scales) in float64, not rounded."""
    scale = torch.zeros(*y.shape[:2], G, dtype=y.dtype, device=y.device)
    values = torch.zeros_like(y)
    for g in range(G):
        columns = slice(None) if G == 1 else slice(GROUP * g, GROUP * (g + 1))
        for b in range(y.shape[0]):
            for l in range(y.shape[1]):
                scale[b, l, g] = max(y[b, l, columns].abs().tolist()) / 448
                values[b, l, columns] = y[b, l, columns] / scale[b, l, g]
    return values, scale


def adaln_quantized_formula(*args: Tensor, out: QuantizedRows) -> tuple[Tensor, Tensor]:
    return quantized_formula(adaln_formula(*args), 1)


@each_backend("adaln")
@COMPUTE
@each_size(
    varsr=(2, 9, 96), wide=(1, 2, 1536), odd=(3, 5, 77), one=(1, 1, 1), empty=(0, 4, 8), no_tokens=(2, 0, 8),
    full=(2, 1025, 1536),
)  # fmt: skip
def test_adaln_writes_quantized_rows(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    args, out = adaln_inputs(*size, dtype), poisoned(*size, 1)
    result = check(adaln, args, {"out": out}, backend=backend, formula=adaln_quantized_formula, rounds_once=True)
    assert result.values.dtype == E4M3


@each_backend("adaln")
def test_adaln_large_mean(backend: str) -> None:
    args, out = adaln_inputs(2, 4, 96, torch.float32, 1e4), poisoned(2, 4, 96, 1)
    check(adaln, args, {"out": out}, backend=backend, formula=adaln_quantized_formula, roundings=None)


@each_backend("adaln")
def test_adaln_zero_and_nan_rows(backend: str) -> None:
    x, scale, shift = adaln_inputs(1, 4, 40, torch.float32)
    scale.fill_(-1), shift.zero_()
    x[0, 2, 5] = math.nan
    result = dequantize(run_case(adaln, (x, scale, shift), {"out": poisoned(1, 4, 40, 1)}, backend))
    assert torch.equal(result[0, [0, 1, 3]], torch.zeros(3, 40, device=DEVICE)) and result[0, 2].isnan().any()


# --- products --------------------------------------------------------------------------------------------------------


def mlp_inputs(B: int, L: int, C: int, F: int, G: int, dtype: torch.dtype) -> tuple[object, ...]:
    return rows(B, L, C, G), weight(F, C), normal(F, dtype=dtype, std=0.1)


def mlp_on_numbers(x: QuantizedRows, w: QuantizedWeight, bias: Tensor, out: object = None) -> object:
    y = mlp_formula(numbers(x), numbers(w), bias)
    return quantized_formula(y, out.scale.shape[-1]) if isinstance(out, QuantizedRows) else y


PRODUCTS = each_size(
    varsr=(2, 9, 96, 384, 1),
    grouped=(2, 9, 384, 96, 3),
    odd=(3, 5, 150, 67, 2),
    odd_rows=(3, 5, 150, 67, 1),
    one=(1, 1, 1, 1, 1),
    empty=(0, 4, 8, 16, 1),
    full=(2, 1024, 1536, 6144, 1),
)


@each_backend("mlp")
@COMPUTE
@PRODUCTS
def test_mlp(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    args = mlp_inputs(*size, dtype)
    roundings = ROUNDINGS if size[3] > 1 else None  # one value alone may lie in GELU's tail, which is a difference
    result = check(
        mlp, args, backend=backend, formula=mlp_on_numbers, sums_eps=SUMS, rounds_once=True, roundings=roundings
    )
    assert result.dtype == dtype


@each_backend("mlp")
@COMPUTE
@PRODUCTS
def test_mlp_writes_quantized_rows(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    B, L, _, F, _ = size
    args, out = mlp_inputs(*size, dtype), {"out": poisoned(B, L, F, groups(F))}
    roundings = ROUNDINGS if F > 1 else None
    check(mlp, args, out, backend=backend, formula=mlp_on_numbers, sums_eps=SUMS, rounds_once=True, roundings=roundings)


def residual_inputs(B: int, L: int, K: int, C: int, G: int, dtype: torch.dtype) -> tuple[object, ...]:
    return normal(B, L, C), rows(B, L, K, G), weight(C, K), normal(C, dtype=dtype), normal(B, C)


def residual_on_numbers(
    residual: Tensor, x: QuantizedRows, w: QuantizedWeight, bias: Tensor, gate: Tensor, out: object = None
) -> Tensor:
    return gated_residual_formula(residual, numbers(x), numbers(w), bias, gate)


@each_backend("gated_residual")
@COMPUTE
@PRODUCTS
def test_gated_residual(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    args = residual_inputs(*size, dtype)
    check(gated_residual, args, {"out": args[0]}, backend=backend, formula=residual_on_numbers, sums_eps=SUMS)


def qkv_inputs(B: int, L: int, H: int, D: int, G: int, dtype: torch.dtype) -> tuple[object, ...]:
    """Of the last L of L + 3 cached tokens."""
    C = H * D
    angles = normal(L, D // 2)
    cache = (torch.full((B, H, L + 3, D), 7.0, dtype=dtype, device=DEVICE) for _ in range(2))
    bias, q_scale = normal(3 * C, dtype=dtype), torch.exp(normal(H))
    return rows(B, L, C, G), weight(3 * C, C), bias, q_scale, angles.cos(), angles.sin(), *cache, 3


def qkv_on_numbers(
    x: QuantizedRows, w: QuantizedWeight, bias: Tensor, q_scale: Tensor, cos: Tensor, sin: Tensor, *rest: object
) -> tuple[Tensor, ...]:
    *caches, position = rest
    H, D, L = q_scale.shape[0], 2 * cos.shape[1], cos.shape[0]
    projected = torch.einsum("blk,nk->bln", numbers(x), numbers(w)) + bias
    q, k, v = projected.unflatten(2, (3, H, D)).permute(2, 0, 3, 1, 4)
    turned = []
    for part, length in ((q, q_scale[:, None, None]), (k, 1.0)):
        part = part / part.square().sum(-1, keepdim=True).sqrt() * length
        even, odd = part[..., 0::2], part[..., 1::2]
        turned.append(torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2))
    for cache, part in zip(caches, (turned[1], v), strict=True):
        cache[:, :, position : position + L] = part
    return turned[0], *caches


@each_backend("qkv_norm_rope_cache")
@COMPUTE
@each_size(varsr=(2, 9, 4, 32, 1), grouped=(2, 5, 4, 64, 2), odd=(3, 7, 3, 16, 1), full=(2, 1025, 24, 64, 1))
def test_qkv_norm_rope_cache(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    def with_caches(*args: object, backend: str) -> tuple[Tensor, ...]:
        return qkv_norm_rope_cache(*args, backend=backend), args[6], args[7]  # type: ignore[arg-type]

    check(with_caches, qkv_inputs(*size, dtype), backend=backend, formula=qkv_on_numbers, sums_eps=SUMS)


@pytest.mark.parametrize("G", [1, 9])
@each_backend("gated_residual")
def test_many_terms_with_a_large_mean(backend: str, G: int) -> None:
    """Products that all have one sign: a sum in fewer bits than float32's would show."""
    residual, x, w, bias, gate = residual_inputs(1, 4, 1100, 24, G, torch.float32)
    x = QuantizedRows(x.values.float().abs().to(E4M3), x.scale)
    w = QuantizedWeight(w.values.float().abs().to(E4M3), w.scale)
    check(gated_residual, (residual, x, w, bias, gate), backend=backend, formula=residual_on_numbers, sums_eps=SUMS)


@each_backend("mlp")
def test_nan_stays_visible(backend: str) -> None:
    x = normal(1, 3, 200)
    x[0, 1, 150] = math.nan
    x = quantize_rows(x, poisoned(1, 3, 200, 2))
    w, bias = weight(130, 200), normal(130)
    for out in (None, poisoned(1, 3, 130, 2)):
        result = run_case(mlp, (x, w, bias), {"out": out}, backend)
        result = dequantize(result) if isinstance(result, QuantizedRows) else result
        assert result[0, 1].isnan().all() and torch.isfinite(result[0, [0, 2]]).all()


@each_backend("mlp")
def test_non_contiguous(backend: str) -> None:
    x, w, bias = mlp_inputs(2, 6, 150, 48, 2, torch.float16)
    x = QuantizedRows(transposed(x.values), transposed(x.scale))
    w = QuantizedWeight(transposed(w.values), transposed(w.scale))
    check(mlp, (x, w, transposed(bias)), backend=backend, formula=mlp_on_numbers, sums_eps=SUMS)


# --- Triton ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def launched(op: str, tile: tuple[int, ...], capability: tuple[int, int]) -> Iterator[None]:
    """Within this context the op's Triton kernel takes this tile, and as on such a device."""
    module = pytest.importorskip(f"varsr_engine.kernels.{op}.triton_kernel")
    tile = pytest.importorskip("varsr_engine.kernels.triton_product").Tile(*tile)
    with assume_capability(*capability), mock.patch.object(module, "product_tile", lambda *_, **__: tile):
        yield


TILES = pytest.mark.parametrize(
    "tile",
    [(16, 128, 128, 4, 2), (64, 128, 64, 4, 2), (32, 128, 128, 4, 2), (128, 128, 128, 8, 2)],
    ids=["swapped", "plain", "swapped_32", "large"],
)


@CAPABILITIES
@TILES
@pytest.mark.parametrize(("K", "G"), [(272, 1), (272, 3), (270, 3)])
def test_triton_tiles(tile: tuple[int, ...], capability: tuple[int, int], K: int, G: int) -> None:
    """Rows, columns and terms that fill no tile. Rows of 270 bytes are not aligned: pointers on any device."""
    args = mlp_inputs(2, 10, K, 150, G, torch.float16)
    with launched("mlp", tile, capability):
        check(mlp, args, backend="triton", formula=mlp_on_numbers, sums_eps=SUMS, rounds_once=True)
        out = {"out": poisoned(2, 10, 150, 2)}
        check(mlp, args, out, backend="triton", formula=mlp_on_numbers, sums_eps=SUMS, rounds_once=True)


@CAPABILITIES
@pytest.mark.parametrize("tile", [(16, 16, 128, 4, 2), (16, 64, 128, 4, 2), (64, 32, 128, 4, 2)])
def test_triton_small_tiles(tile: tuple[int, ...], capability: tuple[int, int]) -> None:
    args = residual_inputs(3, 7, 300, 50, 3, torch.float16)
    with launched("gated_residual", tile, capability):
        check(gated_residual, args, backend="triton", formula=residual_on_numbers, sums_eps=SUMS)


@CAPABILITIES
@pytest.mark.parametrize("K", [4096, 4112])
def test_triton_in_parts(capability: tuple[int, int], K: int) -> None:
    """Few rows of many terms: the terms are split among programs, of which the last has fewer."""
    module = pytest.importorskip("varsr_engine.kernels.gated_residual.triton_kernel")
    args = residual_inputs(2, 9, K, 12, groups(K), torch.float16)
    with assume_capability(*capability):
        assert module.cut(18, 12, K, DEVICE, 1)[1] > 1
        check(gated_residual, args, {"out": args[0]}, backend="triton", formula=residual_on_numbers, sums_eps=SUMS)


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (12, 0)])
@pytest.mark.parametrize("M", [1, 8, 18, 32, 64, 72, 162, 338, 648, 2050])
@pytest.mark.parametrize("N", [1024, 1536, 4608, 6144])
def test_triton_tiles_fit_in_shared_memory(capability: tuple[int, int], M: int, N: int) -> None:
    product_tile = pytest.importorskip("varsr_engine.kernels.triton_product").product_tile
    memory = 227 if capability == (9, 0) else 99
    with assume_capability(*capability):
        for tile in (
            product_tile(M, N, 1536, torch.device("cpu"), 1, most_n=256),
            product_tile(M, N, 1536, torch.device("cpu"), 1, least_n=GROUP, most_n=GROUP),
        ):
            assert (tile.m + tile.n) * tile.k * tile.stages <= memory * 1024
            assert tile.k == GROUP and tile.stages >= 2 and 16 <= tile.n <= 128
        assert tile.n == GROUP  # a program that quantizes sees all columns that share a scale


def test_older_gpus_refuse() -> None:
    pytest.importorskip("triton")
    args = mlp_inputs(1, 2, 16, 16, 1, torch.float16)
    with assume_capability(8, 0):
        reason = OPS["mlp"].reason_unsupported("triton", *args)
    assert reason == "the device has compute capability 8.0, FP8 needs 8.9 (Ada, Hopper or newer)"
    with assume_capability(8, 9):
        assert OPS["mlp"].reason_unsupported("triton", *args) is None


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["adaln", "mlp", "gated_residual", "qkv_norm_rope_cache"])
def test_other_backends_refuse(op: str) -> None:
    args = {
        "adaln": (*adaln_inputs(1, 2, 16, torch.float32), 1e-6, poisoned(1, 2, 16, 1)),
        "mlp": mlp_inputs(1, 2, 16, 16, 1, torch.float32),
        "gated_residual": residual_inputs(1, 2, 16, 16, 1, torch.float32),
        "qkv_norm_rope_cache": (*qkv_inputs(1, 2, 1, 16, 1, torch.float32), 2),
    }[op]
    assert OPS[op].reason_unsupported("cpu", *args) == "the operands are quantized (FP8)"
    for backend in set(OPS[op].backends) - {"torch", "triton"}:
        assert OPS[op].reason_unsupported(backend, *args)


def test_bad_operands() -> None:
    x, w, bias = mlp_inputs(2, 3, 300, 8, 3, torch.float32)
    with raises(TypeError, "mlp: weight is torch.float32, x is torch.float8_e4m3fn"):
        mlp(x, dequantize(w), bias)
    with raises(TypeError, "mlp: x is quantized, weight is not; both or neither must be"):
        mlp(x, w.values, bias)
    with raises(TypeError, "gated_residual: x is not, weight is quantized; both or neither must be"):
        gated_residual(torch.zeros(2, 3, 8), x.values, w, bias, torch.zeros(2, 8))
    with raises(ValueError, "mlp: x.scale must be (B, L, 1 or ceil(K / 128)) = (2, 3, '1 or 3'), got (2, 3, 2)"):
        mlp(QuantizedRows(x.values, x.scale[..., :2]), w, bias)
    with raises(ValueError, "mlp: weight.scale must be (N,) = (8,), got (7,)"):
        mlp(x, QuantizedWeight(w.values, w.scale[:7]), bias)
    with raises(TypeError, "mlp: out is torch.float16, bias is torch.float32"):
        mlp(x, w, bias, out=torch.zeros(2, 3, 8, dtype=torch.float16))
    with raises(ValueError, "mlp: quantized out needs quantized x, and 1 scales a row"):
        mlp(dequantize(x), dequantize(w), bias, out=poisoned(2, 3, 8, 1))
    with raises(ValueError, "adaln: out.scale must be (B, L, 1) = (2, 3, 1), got (2, 3, 3)"):
        adaln(*adaln_inputs(2, 3, 300, torch.float32), out=poisoned(2, 3, 300, 3))


def test_values_of() -> None:
    x, w, bias = mlp_inputs(1, 2, 16, 16, 1, torch.float32)
    assert values_of(x) is x.values and values_of(w) is w.values and values_of(bias) is bias
