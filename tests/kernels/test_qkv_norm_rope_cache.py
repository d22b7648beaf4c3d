"""qkv_norm_rope_cache: projection, normalisation, rotation, and the write into the cache."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.kernels.harness import (
    DEVICE,
    as_tuple,
    check,
    each_backend,
    each_dtype,
    each_layout,
    each_size,
    normal,
    raises,
    run_case,
)
from varsr_engine.config import ModelConfig
from varsr_engine.kernels import qkv_norm_rope_cache
from varsr_engine.kernels.qkv_norm_rope_cache.reference import qkv_norm_rope, rotate_pairs
from varsr_engine.kernels.triton_backend import INTERPRETING, assume_capability
from varsr_engine.model.rope import rope_tables

backends = each_backend("qkv_norm_rope_cache")
each_capability = pytest.mark.parametrize("capability", [(9, 0), (8, 0)], ids=["tma", "pointers"])
Arguments = tuple[Any, ...]


def inputs(B: int, L: int, H: int, D: int, S: int, position: int, dtype: torch.dtype) -> Arguments:
    """Arguments up to `position`, with caches full of NaN and angles of several turns."""
    C = H * D
    angles = torch.rand(L, D // 2, dtype=torch.float64) * 40 - 20
    caches = [torch.full((B, H, S, D), math.nan, dtype=dtype, device=DEVICE) for _ in range(2)]
    return (
        normal(B, L, C, dtype=dtype),
        normal(3 * C, C, dtype=dtype, std=C**-0.5),
        normal(3 * C, dtype=dtype, std=0.1),
        normal(H).exp(),
        angles.cos().float().to(DEVICE),
        angles.sin().float().to(DEVICE),
        *caches,
        position,
    )


def written(*args: Any, num_queries: int | None = None, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """q and the rows of both caches that the op has to write."""
    q = qkv_norm_rope_cache(*args, num_queries=num_queries, backend=backend)
    x, k_cache, v_cache, position = args[0], *args[6:9]
    rows = slice(position, position + x.shape[1])
    return q, k_cache[:, :, rows], v_cache[:, :, rows]


def formula(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    q_scale: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    position: int,
    num_queries: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Head by head and pair by pair: a pair is the complex number x[2j] + i x[2j+1], times cos + i sin."""
    B, H, _, D = k_cache.shape
    L, C = x.shape[1:]
    qkv = torch.einsum("blc,oc->blo", x, weight) + bias
    q, k, v = (torch.zeros(B, H, L, D, dtype=x.dtype, device=x.device) for _ in range(3))
    for h in range(H):
        columns = range(h * D, (h + 1) * D)
        for out, block, length in ((q, 0, q_scale[h]), (k, 1, 1.0)):
            part = qkv[:, :, [block * C + c for c in columns]]
            part = part / part.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-12) * length
            for j in range(D // 2):
                turned = torch.complex(part[..., 2 * j], part[..., 2 * j + 1]) * torch.complex(cos[:, j], sin[:, j])
                out[:, h, :, 2 * j], out[:, h, :, 2 * j + 1] = turned.real, turned.imag
        v[:, h] = qkv[:, :, [2 * C + c for c in columns]]
    first = 0 if num_queries is None else L - num_queries
    return q[:, :, first:], k, v


@backends
@each_dtype()
@each_size(
    varsr=(2, 9, 3, 16, 30, 14),
    odd=(3, 7, 2, 20, 11, 3),
    whole_cache=(1, 5, 2, 8, 5, 0),
    one=(1, 1, 1, 2, 1, 0),
    one_head=(1, 1, 1, 16, 1, 0),
    empty=(0, 4, 2, 16, 6, 1),
    full=(2, 1024, 24, 64, 3264, 1240),
)
def test_formula(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    result = check(written, inputs(*size, dtype), backend=backend, formula=formula)
    assert {t.dtype for t in result} == {dtype}


@backends
@each_dtype()
@pytest.mark.parametrize("num_queries", [0, 1, 4, 7])
def test_num_queries(backend: str, dtype: torch.dtype, num_queries: int) -> None:
    """The last queries only; keys and values of all tokens."""
    args = inputs(2, 7, 2, 16, 10, 2, dtype)
    q, _, _ = check(written, args, {"num_queries": num_queries}, backend=backend, formula=formula)
    assert q.shape == (2, 2, num_queries, 16)


@backends
@each_dtype()
@pytest.mark.parametrize("position", [0, 3, 6])
def test_other_cache_positions_stay(backend: str, dtype: torch.dtype, position: int) -> None:
    def caches_after(*args: Any, backend: str) -> tuple[Tensor, Tensor]:
        qkv_norm_rope_cache(*args, backend=backend)
        return args[6], args[7]

    args = inputs(2, 5, 2, 16, 11, position, dtype)
    outside = [s for s in range(11) if not position <= s < position + 5]
    for cache in run_case(caches_after, args, None, backend):
        assert cache[:, :, outside].isnan().all()
        assert cache[:, :, position : position + 5].isfinite().all()


@backends
def test_caches_inside_one_slab(backend: str) -> None:
    """k and v of one layer are views of a larger buffer, as in the engine."""
    *args, _, _, position = inputs(2, 4, 2, 16, 9, 3, torch.float32)
    slab = torch.full((3, 2, 2, 2, 9, 16), math.nan, device=DEVICE)  # layers, (k, v), B, H, S, D

    def expected(*args: Tensor) -> tuple[Tensor, ...]:
        return formula(*args[:-1], slab[1, 0], slab[1, 1], args[-1])

    def through_slab(*args: Any, backend: str) -> tuple[Tensor, ...]:
        own = slab.to(args[0].dtype).clone()
        q, k, v = written(*args[:-1], own[1, 0], own[1, 1], args[-1], backend=backend)
        result = q.clone(), k.clone(), v.clone()
        own[1, :, :, :, position : position + 4] = math.nan
        assert own.isnan().all()
        return result

    check(through_slab, (*args, position), backend=backend, formula=expected)


@backends
def test_equals_the_training_forward(backend: str) -> None:
    """With the engine's own tables, step by step into one cache, against one pass over the whole sequence."""
    config = ModelConfig(embed_dim=32, num_heads=2, patch_nums=(1, 2, 3))
    cos, sin = (t.to(DEVICE) for t in rope_tables(config))
    S, H, D, C = cos.shape[0], 2, 16, 32
    x, weight, bias, q_scale = normal(2, S, C), normal(3 * C, C, std=C**-0.5), normal(3 * C, std=0.1), normal(H).exp()

    def step_by_step(*args: Tensor, backend: str) -> tuple[Tensor, Tensor, Tensor]:
        x, cos, sin = args[0], *args[4:]
        k_cache, v_cache = (torch.full((2, H, S, D), math.nan, dtype=x.dtype, device=x.device) for _ in range(2))
        queries, start = [], 0
        for length in config.step_lengths:
            rows = slice(start, start + length)
            tables = cos[rows], sin[rows]
            call = (x[:, rows], *args[1:4], *tables, k_cache, v_cache, start)
            queries.append(qkv_norm_rope_cache(*call, backend=backend))
            start += length
        return torch.cat(queries, dim=2), k_cache, v_cache

    check(step_by_step, (x, weight, bias, q_scale, cos, sin), backend=backend, formula=qkv_norm_rope)


@backends
@each_dtype()
def test_zero_vectors(backend: str, dtype: torch.dtype) -> None:
    """0 / 0 in the norm is 0, not NaN."""
    x, weight, bias, *rest = inputs(2, 3, 2, 16, 5, 1, dtype)
    zero = torch.zeros_like
    for t in as_tuple(run_case(written, (zero(x), weight, zero(bias), *rest), None, backend)):
        assert (t == 0).all()


@backends
@each_dtype()
def test_norms_that_overflow_the_dtype(backend: str, dtype: torch.dtype) -> None:
    """Components near 3000: their squares overflow float16, so the norm has to be taken in float32."""
    x, *rest = inputs(2, 4, 2, 16, 6, 1, dtype)
    check(written, (x * 2000, *rest), backend=backend, formula=formula)


@backends
@each_layout
@each_dtype(torch.float32, torch.float16)
def test_non_contiguous(backend: str, layout: Any, dtype: torch.dtype) -> None:
    *tensors, k_cache, v_cache, position = inputs(2, 6, 2, 16, 9, 2, dtype)
    args = (*map(layout, tensors), layout(k_cache), layout(v_cache), position)
    check(written, args, backend=backend, formula=formula)


@contextlib.contextmanager
def launched(tile: tuple[int, ...], capability: tuple[int, int]) -> Iterator[None]:
    """Within this context the Triton kernel takes this tile, and as on such a device: 9.0 has TMA, 8.0 pointers."""
    module = pytest.importorskip("varsr_engine.kernels.qkv_norm_rope_cache.triton_kernel")
    tile = pytest.importorskip("varsr_engine.kernels.triton_product").Tile(*tile)
    with assume_capability(*capability), mock.patch.object(module, "product_tile", lambda *_, **__: tile):
        yield


@each_capability
@pytest.mark.parametrize(
    ("tile", "heads"),
    [((16, 16, 16, 4, 2), 2), ((16, 64, 32, 4, 2), 5), ((64, 64, 32, 4, 2), 5), ((64, 32, 32, 4, 2), 3)],
    ids=["two_sums", "swapped", "plain", "two_heads"],
)
def test_triton_tiles(tile: tuple[int, ...], heads: int, capability: tuple[int, int]) -> None:
    """Tiles of several heads, of which the last has some of the next part; tiles of several sequences."""
    with launched(tile, capability):
        args = inputs(3, 7, heads, 16, 12, 4, torch.float16)
        check(written, args, {"num_queries": 2}, backend="triton", formula=formula)


@pytest.mark.skipif(not INTERPRETING, reason="counts the calls of Triton's interpreter")
@pytest.mark.parametrize(("num_queries", "tiles"), [(0, 0), (1, 2), (9, 3), (40, 5)])
def test_triton_skips_tiles_without_a_query(num_queries: int, tiles: int) -> None:
    """Two sequences of 40 in five tiles of 16 rows: their last tokens are in the third and the fifth tile."""
    module = pytest.importorskip("varsr_engine.kernels.qkv_norm_rope_cache.triton_kernel")
    args = inputs(2, 40, 1, 16, 41, 1, torch.float16)
    with (
        launched((16, 16, 16, 4, 2), (9, 0)),
        mock.patch.object(module, "product", side_effect=module.product) as product,
    ):
        run_case(written, args, {"num_queries": num_queries}, "triton")
    assert product.call_count == tiles + 2 * 5


def test_rotation_by_a_quarter_turn() -> None:
    """(1, 0, 2, 0) turned by 90 degrees is (0, 1, 0, 2): pairs are neighbours, not halves."""
    zeros, ones = torch.zeros(1, 2), torch.ones(1, 2)
    assert torch.equal(rotate_pairs(torch.tensor([[1.0, 0, 2, 0]]), zeros, ones), torch.tensor([[0.0, 1, 0, 2]]))


def test_gradients_of_the_training_forward() -> None:
    x, weight, bias, q_scale, cos, sin, *_ = inputs(1, 3, 2, 4, 3, 0, torch.float64)
    args = [t.cpu().double().requires_grad_() for t in (x, weight, bias, q_scale)]
    tables = cos.cpu().double(), sin.cpu().double()
    assert torch.autograd.gradcheck(lambda *a: qkv_norm_rope(*a, *tables), args)


SHAPES: dict[str, tuple[int, ...]] = {
    "x": (2, 3, 8),
    "weight": (24, 8),
    "bias": (24,),
    "q_scale": (2,),
    "cos": (3, 2),
    "sin": (3, 2),
    "k_cache": (2, 2, 9, 4),
    "v_cache": (2, 2, 9, 4),
}


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (3, 8), "x must be (B, L, C), got shape (3, 8)"),
        ("weight", (8, 24), "weight must be (3C, C) = (24, 8), got (8, 24)"),
        ("bias", (8,), "bias must be (3C,) = (24,), got (8,)"),
        ("q_scale", (3,), "q_scale must be (H,) = (2,), got (3,)"),
        ("cos", (3, 4), "cos must be (L, D/2) = (3, 2), got (3, 4)"),
        ("sin", (9, 2), "sin must be (L, D/2) = (3, 2), got (9, 2)"),
        ("k_cache", (2, 9, 4), "k_cache must be (B, H, S, D), got shape (2, 9, 4)"),
        ("k_cache", (1, 2, 9, 4), "k_cache must be (B, H, S, D) = (2, 2, 9, 4), got (1, 2, 9, 4)"),
        ("v_cache", (2, 2, 8, 4), "v_cache must be (B, H, S, D) = (2, 2, 9, 4), got (2, 2, 8, 4)"),
    ],
)
def test_bad_shape(name: str, shape: tuple[int, ...], message: str) -> None:
    tensors = {k: torch.zeros(s) for k, s in (SHAPES | {name: shape}).items()}
    with raises(ValueError, f"qkv_norm_rope_cache: {message}"):
        qkv_norm_rope_cache(**tensors, position=0)


def test_heads_that_do_not_fill_the_width() -> None:
    tensors = {k: torch.zeros(s) for k, s in SHAPES.items()}
    narrow = {"k_cache": torch.zeros(2, 1, 9, 6), "v_cache": torch.zeros(2, 1, 9, 6), "q_scale": torch.zeros(1)}
    tables = {"cos": torch.zeros(3, 3), "sin": torch.zeros(3, 3)}
    with pytest.raises(ValueError, match=r"^qkv_norm_rope_cache: k_cache must be .* H \* D = .*8, got \(2, 1, 9, 6\)$"):
        qkv_norm_rope_cache(**(tensors | narrow | tables), position=0)


@pytest.mark.parametrize("position", [-1, 7])
def test_bad_position(position: int) -> None:
    message = f"qkv_norm_rope_cache: position must be in [0, S - L] = [0, 6], got {position}"
    with raises(ValueError, message):
        qkv_norm_rope_cache(**{k: torch.zeros(s) for k, s in SHAPES.items()}, position=position)


@pytest.mark.parametrize("num_queries", [-1, 4])
def test_bad_num_queries(num_queries: int) -> None:
    message = f"qkv_norm_rope_cache: num_queries must be in [0, L] = [0, 3], got {num_queries}"
    with raises(ValueError, message):
        qkv_norm_rope_cache(**{k: torch.zeros(s) for k, s in SHAPES.items()}, position=0, num_queries=num_queries)


@pytest.mark.parametrize("name", ["weight", "bias", "k_cache", "v_cache"])
def test_bad_dtype(name: str) -> None:
    tensors = {k: torch.zeros(s) for k, s in SHAPES.items()}
    with raises(TypeError, f"qkv_norm_rope_cache: {name} is torch.float16, x is torch.float32"):
        qkv_norm_rope_cache(**(tensors | {name: tensors[name].half()}), position=0)
