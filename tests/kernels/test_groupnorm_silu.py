"""groupnorm_silu: silu(group_norm(x)), or the norm alone."""

from __future__ import annotations

import importlib
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.kernels.harness import check, each_backend, each_dtype, each_layout, each_size, normal, raises, run_case
from varsr_engine.kernels import groupnorm_silu

backends = each_backend("groupnorm_silu")
each_format = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)


def inputs(
    B: int, C: int, H: int, W: int, dtype: torch.dtype, memory_format: torch.memory_format, mean: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    x = normal(B, C, H, W, dtype=dtype, mean=mean).contiguous(memory_format=memory_format)
    return x, normal(C, dtype=dtype, mean=1.0, std=0.3), normal(C, dtype=dtype, std=0.3)


def formula(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-6, silu: bool = True) -> Tensor:
    y = torch.zeros_like(x)
    size = x.shape[1] // groups
    for b in range(x.shape[0]):
        for g in range(groups):
            channels = slice(g * size, (g + 1) * size)
            part = x[b, channels]
            centred = part - part.sum() / part.numel()
            normalised = centred / ((centred * centred).sum() / part.numel() + eps) ** 0.5
            y[b, channels] = normalised * weight[channels, None, None] + bias[channels, None, None]
    return y / (1 + torch.exp(-y)) if silu else y


@backends
@each_format
@each_dtype()
@each_size(
    vae=(2, 16, 8, 8, 4),
    odd=(1, 15, 7, 5, 3),
    group_a_channel=(1, 6, 5, 3, 6),
    one=(1, 4, 1, 1, 2),
    empty=(0, 8, 4, 4, 2),
    full=(1, 640, 64, 64, 32),
)
def test_formula(backend: str, dtype: torch.dtype, memory_format: torch.memory_format, size: tuple[int, ...]) -> None:
    *shape, groups = size
    args = (*inputs(*shape, dtype, memory_format), groups)
    check(groupnorm_silu, args, backend=backend, formula=formula, rounds_once=True)


@backends
@each_dtype()
def test_norm_alone(backend: str, dtype: torch.dtype) -> None:
    args = (*inputs(2, 16, 6, 6, dtype, torch.channels_last), 4)
    check(groupnorm_silu, args, {"silu": False}, backend=backend, formula=formula, rounds_once=True)


@backends
def test_eps(backend: str) -> None:
    x, weight, bias = inputs(1, 8, 4, 4, torch.float32, torch.channels_last)
    check(groupnorm_silu, (x * 0.1, weight, bias, 2, 0.05), backend=backend, formula=formula)


@backends
@each_format
def test_memory_format_is_kept(backend: str, memory_format: torch.memory_format) -> None:
    args = (*inputs(2, 8, 5, 6, torch.float32, memory_format), 2)
    assert run_case(groupnorm_silu, args, None, backend).is_contiguous(memory_format=memory_format)


@backends
@each_format
@each_dtype()
def test_large_mean(backend: str, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    """A variance from E[x^2] - E[x]^2 loses all digits in float16 and bfloat16, most of them in float32."""
    mean = 300.0 if dtype == torch.float32 else 20.0
    args = (*inputs(2, 16, 8, 8, dtype, memory_format, mean), 4)
    check(groupnorm_silu, args, backend=backend, formula=formula, roundings=None)


@backends
@each_dtype(torch.float32, torch.float16)
def test_moments_of_parts_are_merged(backend: str, dtype: torch.dtype) -> None:
    """Many pixels, in several chunks of several steps in Triton, over which the mean drifts by many deviations."""
    x, weight, bias = inputs(2, 12, 41, 30, dtype, torch.channels_last)
    x += torch.arange(41, device=x.device, dtype=dtype)[:, None] / 4
    if backend == "triton":
        pytest.importorskip("triton")
        module = importlib.import_module("varsr_engine.kernels.groupnorm_silu.triton_kernel")
        few = mock.patch.multiple(module, FEWEST=1, MOST_CHUNKS=6, MOST_PROGRAMS=6, STEP_NORMALISE=2048)
    else:
        few = mock.patch.dict({})
    with few:
        check(groupnorm_silu, (x, weight, bias, 4), backend=backend, formula=formula, rounds_once=True)


@backends
@each_dtype()
def test_in_place(backend: str, dtype: torch.dtype) -> None:
    def in_place(x: Tensor, *rest: object, backend: str) -> Tensor:
        assert groupnorm_silu(x, *rest, out=x, backend=backend) is x
        return x

    args = (*inputs(2, 16, 6, 6, dtype, torch.channels_last), 4)
    check(in_place, args, backend=backend, formula=formula, rounds_once=True)


@backends
def test_constant_input_gives_the_bias(backend: str) -> None:
    x, weight, bias = inputs(1, 8, 4, 4, torch.float32, torch.channels_last)
    result = run_case(groupnorm_silu, (torch.full_like(x, 0.5), weight, bias, 2), {"silu": False}, backend)
    noise = 2 * torch.finfo(torch.float32).eps * 0.5 * 1e-6**-0.5 * weight.abs().max()  # the mean's rounding, amplified
    assert (result - bias[:, None, None]).abs().max() <= noise


@backends
@each_dtype()
def test_silu_tails(backend: str, dtype: torch.dtype) -> None:
    """Values from about -90 to 90 after the affine step: exp(-y) overflows float16 on the left."""
    x, weight, bias = inputs(1, 8, 8, 8, dtype, torch.channels_last)
    check(groupnorm_silu, (x, weight * 30, bias, 2), backend=backend, formula=formula)


@backends
@each_layout
@each_dtype(torch.float32, torch.float16)
def test_non_contiguous(backend: str, layout: object, dtype: torch.dtype) -> None:
    args = tuple(map(layout, inputs(2, 8, 6, 4, dtype, torch.contiguous_format)))
    check(groupnorm_silu, (*args, 4), backend=backend, formula=formula)


@backends
def test_input_stays(backend: str) -> None:
    def input_after(x: Tensor, *rest: object, backend: str) -> Tensor:
        groupnorm_silu(x, *rest, backend=backend)
        return x

    args = (*inputs(1, 8, 3, 3, torch.float32, torch.channels_last), 2)
    assert torch.equal(run_case(input_after, args, None, backend), args[0])


@pytest.mark.parametrize("silu", [True, False])
def test_gradients(silu: bool) -> None:
    args = [t.cpu().requires_grad_() for t in inputs(2, 4, 2, 3, torch.float64, torch.contiguous_format)]
    assert torch.autograd.gradcheck(lambda *a: groupnorm_silu(*a, 2, silu=silu), args)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (2, 8, 4), "groupnorm_silu: x must be (B, C, H, W), got shape (2, 8, 4)"),
        ("weight", (7,), "groupnorm_silu: weight must be (C,) = (8,), got (7,)"),
        ("bias", (1, 8), "groupnorm_silu: bias must be (C,) = (8,), got (1, 8)"),
    ],
)
def test_bad_shape(name: str, shape: tuple[int, ...], message: str) -> None:
    shapes = {"x": (2, 8, 4, 4), "weight": (8,), "bias": (8,)} | {name: shape}
    with raises(ValueError, message):
        groupnorm_silu(**{k: torch.zeros(s) for k, s in shapes.items()}, groups=2)


def test_bad_groups() -> None:
    with raises(ValueError, "groupnorm_silu: groups must divide C = 8, got 3"):
        groupnorm_silu(torch.zeros(2, 8, 4, 4), torch.zeros(8), torch.zeros(8), 3)
