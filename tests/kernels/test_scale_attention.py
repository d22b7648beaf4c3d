"""scale_attention: softmax(q k^T) v, softmax scale 1, no mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.harness import (
    DEVICE,
    check,
    each_backend,
    each_dtype,
    each_layout,
    each_size,
    normal,
    raises,
    run_case,
)
from varsr_engine.kernels import scale_attention
from varsr_engine.kernels.scale_attention import LARGEST_STATIC_BOUND, static_bound

backends = each_backend("scale_attention")
Triple = tuple[Tensor, Tensor, Tensor]


def unit_rows(t: Tensor, length: float = 1.0) -> Tensor:
    return (t.double() / t.double().norm(dim=-1, keepdim=True) * length).to(t.dtype)


def inputs(B: int, H: int, L: int, S: int, D: int, dtype: torch.dtype, length: float = 4.0) -> Triple:
    """Keys of norm 1 and queries of norm `length`, as the network's are."""
    q, k, v = (normal(B, H, n, D, dtype=dtype) for n in (L, S, S))
    return unit_rows(q, length), unit_rows(k), v


def formula(q: Tensor, k: Tensor, v: Tensor, bound: Tensor | None = None) -> Tensor:
    B, H, L, D = q.shape
    result = torch.zeros(B, L, H * D, dtype=q.dtype, device=q.device)
    for h in range(H):
        scores = (q[:, h, :, None] * k[:, h, None]).sum(-1)  # (B, L, S)
        weights = (scores - scores.max(-1, keepdim=True).values).exp()
        weights = weights / weights.sum(-1, keepdim=True)
        result[:, :, h * D : (h + 1) * D] = (weights[..., None] * v[:, h, None]).sum(2)
    return result


@backends
@each_dtype()
@each_size(
    varsr=(2, 2, 9, 26, 64),
    first_scale=(1, 2, 17, 17, 16),
    odd=(3, 2, 5, 19, 24),
    one=(1, 1, 1, 1, 1),
    one_key=(1, 2, 4, 1, 8),
    empty=(0, 2, 4, 4, 8),
    no_queries=(1, 2, 0, 4, 8),
)
def test_formula(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    check(scale_attention, inputs(*size, dtype), backend=backend, formula=formula)


@pytest.mark.gpu
@backends
@each_dtype()
def test_full_size(backend: str, dtype: torch.dtype) -> None:
    def in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([(p @ k.mT).softmax(-1) @ v for p in q.split(128, dim=2)], dim=2).transpose(1, 2).flatten(2)

    check(scale_attention, inputs(2, 24, 1024, 3264, 64, dtype), backend=backend, formula=in_blocks)


@backends
@each_dtype()
def test_saturated_softmax(backend: str, dtype: torch.dtype) -> None:
    """Scores of +-100, the largest that the clamp of the learned scale allows: exp overflows without the maximum."""
    q, k, v = inputs(2, 2, 8, 20, 16, dtype, length=100.0)
    k[:, :, 3] = unit_rows(q[:, :, 0])
    check(scale_attention, (q, k, v), backend=backend, formula=formula, roundings=None)
    q = torch.zeros_like(q)
    q[..., 0] = 100.0
    k = torch.zeros_like(k)
    k[..., 0] = -1.0
    k[:, :, 7, 0] = 1.0
    result = run_case(scale_attention, (q, k, v), None, backend).unflatten(2, (2, 16))
    assert torch.equal(result, v[:, None, :, 7].expand_as(result))


@backends
@each_dtype()
@each_size(
    split=(1, 1, 3, 704, 16),
    split_and_tail=(1, 2, 3, 715, 16),
    tail=(1, 2, 17, 139, 16),
    whole=(2, 1, 1, 64, 32),
    tail_only=(1, 3, 5, 7, 16),
    two_tiles=(1, 1, 129, 40, 16),
    wide=(1, 1, 2, 130, 128),
    empty=(0, 2, 4, 4, 16),
)
@pytest.mark.parametrize("bounded", [True, False], ids=["bound", "maximum"])
def test_splits_and_tails(backend: str, dtype: torch.dtype, size: tuple[int, ...], bounded: bool) -> None:
    """Sizes around the tiles of kernels; a bound changes how a kernel shifts scores, not what comes out."""
    q, k, v = inputs(*size, dtype)
    bound = torch.full((size[1],), 4.0, device=DEVICE) if bounded else None
    check(scale_attention, (q, k, v), {"bound": bound}, backend=backend, formula=formula)


@backends
@each_dtype()
@pytest.mark.parametrize("S", [6, 700], ids=["unsplit", "split"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_scores_at_the_bound(backend: str, dtype: torch.dtype, S: int, sign: float) -> None:
    """Every score at an end of [-bound, bound], each head with its own: weights neither overflow nor lose digits."""
    q, k, v = inputs(1, 2, 3, S, 16, dtype, length=1.0)
    q, k = torch.zeros_like(q), torch.zeros_like(k)
    bound = torch.tensor([LARGEST_STATIC_BOUND, 0.5], device=DEVICE)
    q[..., 0] = bound.to(dtype)[None, :, None]
    k[..., 0] = sign
    v = v.abs()  # the result is their mean, which would cancel to little: float32 could not resolve it
    check(scale_attention, (q, k, v), {"bound": bound}, backend=backend, formula=formula)


def test_static_bound() -> None:
    """Only where no head exceeds what the kernels' weights can express."""
    low, high = torch.tensor([1.0, LARGEST_STATIC_BOUND]), torch.tensor([1.0, LARGEST_STATIC_BOUND + 0.01])
    assert static_bound(low) is low
    assert static_bound(high) is None


@backends
def test_repeatable(backend: str) -> None:
    """Splits add up in a fixed order."""
    args = inputs(1, 2, 2, 700, 16, torch.float16)
    first, second = (run_case(scale_attention, args, None, backend) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("element", [2, 4])
def test_cut_covers_the_keys(element: int) -> None:
    """Every split has whole blocks, the last one what is left; sizes of the tests above do and do not split."""
    pytest.importorskip("triton")
    from varsr_engine.kernels.scale_attention.triton_kernel import cut_of

    for heads, L, S in ((2, 3, 715), (1, 3, 704), (2, 17, 139), (3, 5, 7), (48, 1, 1), (48, 81, 1171), (384, 4, 1029)):
        cut = cut_of(heads, L, S, 64, element, hopper=True)
        whole = S // cut.block_s
        assert max(whole, 1) > (cut.splits - 1) * cut.blocks
        assert whole <= cut.splits * cut.blocks
        assert cut.tail == 0 if S % cut.block_s == 0 else S % cut.block_s <= cut.tail <= cut.block_s
        assert heads > 2 or (cut.splits > 1) == (S > 700)


@backends
@each_dtype(torch.float32, torch.float16)
def test_rows_of_a_wider_result(backend: str, dtype: torch.dtype) -> None:
    """`out` may be a part of a larger tensor; its neighbours stay."""
    q, k, v = inputs(2, 2, 3, 40, 16, dtype)
    whole = torch.full((2, 3, 64), 5.0, dtype=dtype, device=DEVICE)
    kwargs = {"out": whole[:, :, 16:48]}
    check(scale_attention, (q, k, v), kwargs, backend=backend, formula=lambda q, k, v, out: formula(q, k, v))


@backends
@each_dtype()
def test_equal_scores_give_the_mean(backend: str, dtype: torch.dtype) -> None:
    q, k, v = inputs(1, 2, 3, 16, 8, dtype)
    check(scale_attention, (torch.zeros_like(q), k, v), backend=backend, formula=formula)
    constant = run_case(scale_attention, (torch.zeros_like(q), k, torch.full_like(v, 2.0)), None, backend)
    assert (constant - 2).abs().max() <= torch.finfo(dtype).eps * 2


@backends
@each_dtype(torch.float32, torch.float16)
def test_views_of_a_cache(backend: str, dtype: torch.dtype) -> None:
    """The valid part of a longer cache, as in the engine; what lies behind it is NaN."""
    q, k, v = inputs(2, 2, 6, 32, 16, dtype)
    whole = [torch.cat((t, torch.full_like(t, float("nan"))), dim=2) for t in (k, v)]
    views = [t[:, :, :32] for t in whole]
    check(scale_attention, (q, *views), backend=backend, formula=formula)


@backends
@each_layout
@each_dtype(torch.float32, torch.float16)
def test_non_contiguous(backend: str, layout: Any, dtype: torch.dtype) -> None:
    check(scale_attention, tuple(map(layout, inputs(2, 2, 6, 16, 16, dtype))), backend=backend, formula=formula)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("q", (2, 3, 4), "q must be (B, H, L, D), got shape (2, 3, 4)"),
        ("k", (2, 3, 4), "k must be (B, H, S, D), got shape (2, 3, 4)"),
        ("k", (2, 3, 9, 5), "k must be (B, H, S, D) = (2, 3, 9, 4), got (2, 3, 9, 5)"),
        ("v", (2, 3, 8, 4), "v must be (B, H, S, D) = (2, 3, 9, 4), got (2, 3, 8, 4)"),
    ],
)
def test_bad_shape(name: str, shape: tuple[int, ...], message: str) -> None:
    shapes = {"q": (2, 3, 5, 4), "k": (2, 3, 9, 4), "v": (2, 3, 9, 4)} | {name: shape}
    with raises(ValueError, f"scale_attention: {message}"):
        scale_attention(**{k: torch.zeros(s) for k, s in shapes.items()})


def test_no_keys_and_bad_dtype() -> None:
    q, k, v = (torch.zeros(1, 1, n, 4, device=DEVICE) for n in (2, 3, 3))
    with raises(ValueError, "scale_attention: S must be positive: a query needs a key to attend to"):
        scale_attention(q, k[:, :, :0], v[:, :, :0])
    with raises(TypeError, "scale_attention: v is torch.float16, q is torch.float32"):
        scale_attention(q, k, v.half())
    with raises(ValueError, "scale_attention: bound must be (H,) = (1,), got (2,)"):
        scale_attention(q, k, v, bound=torch.ones(2, device=DEVICE))
