"""block_causal_attention: every token sees its own step and the earlier ones."""

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
    to_float64,
)
from tests.kernels.test_scale_attention import inputs as attention_inputs
from tests.numerics import assert_accurate
from varsr_engine.kernels import block_causal_attention, scale_attention

backends = each_backend("block_causal_attention")
VARSR_LIKE = (10, 4, 9)  # a prefix of 9 with the class token, then scales 2 and 3


def inputs(
    B: int, H: int, D: int, lengths: tuple[int, ...], dtype: torch.dtype, length: float = 4.0
) -> tuple[Any, ...]:
    S = sum(lengths)
    return (*attention_inputs(B, H, S, S, D, dtype, length), lengths)


def dense_mask(lengths: tuple[int, ...], like: Tensor) -> Tensor:
    """(S, S), 0 where the key's step is not later than the query's, else -inf."""
    step = torch.tensor([i for i, n in enumerate(lengths) for _ in range(n)], device=like.device)
    mask = torch.zeros(len(step), len(step), dtype=like.dtype, device=like.device)
    return mask.masked_fill(step[None, :] > step[:, None], -torch.inf)


def formula(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) + dense_mask(lengths, q)
    return torch.einsum("bhqk,bhkd->bqhd", scores.softmax(-1), v).flatten(2)


@backends
@each_dtype()
@each_size(
    varsr=(2, 2, 16, VARSR_LIKE),
    class_to_image=(1, 2, 16, (1, 4, 9)),
    odd=(3, 1, 20, (7, 1, 5)),
    one=(1, 1, 1, (1,)),
    empty=(0, 2, 8, (2, 3)),
    full=(1, 24, 64, (1025, 4, 9, 16, 36, 81, 169, 324, 576, 1024)),
)
def test_formula(backend: str, dtype: torch.dtype, size: tuple[Any, ...]) -> None:
    check(block_causal_attention, inputs(*size, dtype), backend=backend, formula=formula)


@backends
@each_dtype()
@each_size(
    tiles=(1, 2, 16, (33, 1, 4, 9)),  # float32 tiles of 16 and 32: whole blocks, masked ones and blocks never read
    wide=(1, 1, 128, (3, 18)),
    large_tiles=(1, 1, 32, (70, 1, 4, 60)),
    empty=(0, 2, 16, (2, 3)),
)
def test_tiles(backend: str, dtype: torch.dtype, size: tuple[Any, ...]) -> None:
    check(block_causal_attention, inputs(*size, dtype), backend=backend, formula=formula)


@backends
@each_dtype()
def test_saturated_softmax(backend: str, dtype: torch.dtype) -> None:
    args = inputs(1, 2, 16, VARSR_LIKE, dtype, length=100.0)
    check(block_causal_attention, args, backend=backend, formula=formula, roundings=None)


@backends
def test_later_steps_are_invisible(backend: str) -> None:
    """NaN in the last step's keys and values does not reach the earlier steps."""
    q, k, v, lengths = inputs(2, 2, 8, VARSR_LIKE, torch.float32)
    before = run_case(block_causal_attention, (q, k, v, lengths), None, backend)
    k, v = k.clone(), v.clone()
    k[:, :, 14:], v[:, :, 14:] = float("nan"), float("nan")
    after = run_case(block_causal_attention, (q, k, v, lengths), None, backend)
    assert torch.equal(before[:, :14], after[:, :14])
    assert after[:, 14:].isnan().all()


@backends
@each_dtype(torch.float32, torch.float16)
def test_later_steps_do_not_matter(backend: str, dtype: torch.dtype) -> None:
    q, k, v, lengths = inputs(1, 2, 16, (33, 1, 4, 9), dtype)
    before = run_case(block_causal_attention, (q, k, v, lengths), None, backend)
    k, v = k.clone(), v.clone()
    k[:, :, 38:] *= -50
    v[:, :, 38:] += 1000
    after = run_case(block_causal_attention, (q, k, v, lengths), None, backend)
    assert torch.equal(before[:, :38], after[:, :38])
    assert (before[:, 38:] != after[:, 38:]).all()


@backends
def test_equals_scale_by_scale_attention(backend: str) -> None:
    """Teacher forcing sees what generation sees."""

    def scale_by_scale(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
        ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
        steps = zip(q.split(list(lengths), dim=2), ends, strict=True)
        return torch.cat([scale_attention(part, k[:, :, :end], v[:, :, :end]) for part, end in steps], dim=1)

    args = inputs(2, 2, 16, VARSR_LIKE, torch.float32)
    check(block_causal_attention, args, backend=backend, formula=scale_by_scale)


@backends
@each_layout
@each_dtype(torch.float32, torch.float16)
def test_non_contiguous(backend: str, layout: Any, dtype: torch.dtype) -> None:
    *qkv, lengths = inputs(2, 2, 16, (3, 4, 9), dtype)
    check(block_causal_attention, (*map(layout, qkv), lengths), backend=backend, formula=formula)


def gradients(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], do: Tensor, backend: str) -> Any:
    """(dq, dk, dv) of sum(do * attention)."""
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    out = block_causal_attention(*leaves, lengths, backend=backend)
    return torch.autograd.grad(out, leaves, do)


@backends
@each_dtype()
@each_size(
    varsr=(2, 2, 16, VARSR_LIKE),
    tiles=(1, 1, 16, (33, 1, 4, 9)),
    large_tiles=(1, 1, 16, (66, 1, 4, 12)),
    two_tokens=(1, 1, 32, (1, 1)),
    empty=(0, 2, 16, (2, 3)),
    full=(1, 24, 64, (1025, 4, 9, 16, 36, 81, 169, 324, 576, 1024)),
)
def test_gradients_of_backends(backend: str, dtype: torch.dtype, size: tuple[Any, ...]) -> None:
    """Held to the reference's gradients in float64; queries and keys lie in memory as a model's do."""
    B, H, D, lengths = size
    q, k, v, _ = inputs(*size, dtype)
    q, k = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k))
    args = (q, k, v, lengths, normal(B, sum(lengths), H * D, dtype=dtype))
    actual = run_case(gradients, args, None, backend)
    eager = run_case(gradients, args, None, "torch")
    exact = run_case(gradients, to_float64(args), None, "torch")
    for name, mine, plain, truth in zip("qkv", actual, eager, exact, strict=True):
        assert_accurate(mine, plain, truth, what=f"d{name}")


@backends
def test_gradient_of_an_expanded_result(backend: str) -> None:
    """sum() gives a gradient with strides of 0; with saturated scores nothing overflows."""
    args = inputs(1, 2, 16, VARSR_LIKE, torch.float32, length=100.0)
    do = torch.ones((), device=DEVICE).expand(1, sum(VARSR_LIKE), 32)
    actual = run_case(gradients, (*args, do), None, backend)
    exact = run_case(gradients, to_float64((*args, do)), None, "torch")
    for mine, truth in zip(actual, exact, strict=True):
        assert (mine - truth).abs().max() <= 1e-3 * truth.abs().max()


def test_gradients() -> None:
    args = [normal(1, 2, 6, 3, dtype=torch.float64).cpu().requires_grad_() for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *qkv: block_causal_attention(*qkv, (1, 2, 3)), args)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("q", (2, 3, 4), "q must be (B, H, S, D), got shape (2, 3, 4)"),
        ("k", (2, 3, 6, 4), "k must be (B, H, S, D) = (2, 3, 5, 4), got (2, 3, 6, 4)"),
        ("v", (2, 3, 5, 8), "v must be (B, H, S, D) = (2, 3, 5, 4), got (2, 3, 5, 8)"),
    ],
)
def test_bad_shape(name: str, shape: tuple[int, ...], message: str) -> None:
    shapes = {"q": (2, 3, 5, 4), "k": (2, 3, 5, 4), "v": (2, 3, 5, 4)} | {name: shape}
    with raises(ValueError, f"block_causal_attention: {message}"):
        block_causal_attention(**{k: torch.zeros(s) for k, s in shapes.items()}, lengths=(2, 3))


@pytest.mark.parametrize("lengths", [(2, 2), (5, 0), (6, -1), ()])
def test_bad_lengths(lengths: tuple[int, ...]) -> None:
    q = torch.zeros(1, 1, 5, 4)
    with raises(ValueError, f"block_causal_attention: lengths must be positive and sum to S = 5, got {lengths}"):
        block_causal_attention(q, q, q, lengths)


def test_bad_dtype() -> None:
    q = torch.zeros(1, 1, 5, 4)
    with raises(TypeError, "block_causal_attention: k is torch.bfloat16, q is torch.float32"):
        block_causal_attention(q, q.bfloat16(), q, (5,))
