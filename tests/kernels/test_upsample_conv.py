"""upsample_conv: nearest-neighbour upsampling by 2, then a 3x3 convolution.

On a GPU a library makes the products and rounds them, as torch does: the kernel after them rounds a second time.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.harness import check, each_backend, each_dtype, each_layout, each_size, normal, raises, run_case
from tests.numerics import relative_error
from varsr_engine.kernels import upsample_conv
from varsr_engine.kernels.conv3x3 import prepare_conv3x3
from varsr_engine.kernels.upsample_conv import phase_weights

backends = each_backend("upsample_conv")
each_format = pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
Triple = tuple[Tensor, Tensor, Tensor]


def kernel(C_out: int, C_in: int, dtype: torch.dtype) -> Tensor:
    return normal(C_out, C_in, 3, 3, dtype=dtype, std=(9 * C_in) ** -0.5)


def inputs(B: int, C_in: int, C_out: int, H: int, W: int, dtype: torch.dtype) -> Triple:
    phases = phase_weights(kernel(C_out, C_in, torch.float64)).to(dtype)
    return normal(B, C_in, H, W, dtype=dtype), phases, normal(C_out, dtype=dtype, std=0.1)


def formula(x: Tensor, phases: Tensor, bias: Tensor, weights: object = None) -> Tensor:
    """Output pixel (2y + py, 2x + px) sums 2x2 taps of its phase, from input pixel (y - 1 + py, x - 1 + px) on."""
    B, _, H, W = x.shape
    framed = F.pad(x, (1, 1, 1, 1))
    result = torch.zeros(B, phases.shape[2], 2 * H, 2 * W, dtype=x.dtype, device=x.device)
    for row in range(2 * H):
        for column in range(2 * W):
            (y, py), (x_, px) = divmod(row, 2), divmod(column, 2)
            window = framed[:, :, y + py : y + py + 2, x_ + px : x_ + px + 2]
            result[:, :, row, column] = torch.einsum("bcij,ocij->bo", window, phases[py, px]) + bias
    return result


@backends
@each_dtype()
@each_size(vae=(1, 16, 16, 6, 6), odd=(2, 5, 7, 3, 5), one=(1, 1, 1, 1, 1), row=(1, 3, 2, 1, 4), empty=(0, 4, 4, 2, 2))
def test_formula(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    check(upsample_conv, inputs(*size, dtype), backend=backend, formula=formula, rounds_once=backend != "triton")


@each_size(vae=(1, 16, 16, 6, 6), odd=(2, 5, 7, 3, 5), one=(1, 1, 1, 1, 1), row=(1, 3, 2, 1, 4))
def test_reference_is_nearest_and_conv3x3(size: tuple[int, ...]) -> None:
    B, C_in, C_out, H, W = size
    x, weight, bias = normal(B, C_in, H, W).double(), kernel(C_out, C_in, torch.float64), normal(C_out).double()
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, bias, padding=1)
    assert relative_error(upsample_conv(x, phase_weights(weight), bias, backend="torch"), expected) <= 1e-14


@backends
@each_dtype()
@each_size(vae=(1, 8, 8, 5, 6), full=(1, 640, 640, 64, 64))
def test_nearest_and_conv3x3(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    """End to end: the phases' rounding included, which a sum of up to four taps makes relatively small."""
    B, C_in, C_out, H, W = size
    x, weight, bias = normal(B, C_in, H, W, dtype=dtype), kernel(C_out, C_in, dtype), normal(C_out, dtype=dtype)
    actual = run_case(upsample_conv, (x, phase_weights(weight), bias), None, backend)
    enlarged = F.interpolate(x.double(), scale_factor=2, mode="nearest")
    expected = F.conv2d(enlarged, weight.double(), bias.double(), padding=1)
    assert relative_error(actual, expected) <= 4 * torch.finfo(dtype).eps


@backends
@each_format
@each_dtype()
def test_memory_format_is_kept(backend: str, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    x, phases, bias = inputs(2, 8, 6, 4, 5, dtype)
    args = (x.contiguous(memory_format=memory_format), phases, bias)
    result = check(upsample_conv, args, backend=backend, formula=formula, rounds_once=backend != "triton")
    assert result.is_contiguous(memory_format=memory_format)


@backends
@each_dtype()
def test_constant_input_shows_the_border(backend: str, dtype: torch.dtype) -> None:
    """Ones everywhere: 4, 6 or 9 taps meet the zero padding exactly; a large bias must not drown them."""
    x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
    args = tuple(t.to(normal(1).device, dtype) for t in (x, phase_weights(weight), torch.full((1,), 64.0)))
    taps = torch.tensor([2.0, 3, 3, 3, 3, 2])
    result = run_case(upsample_conv, args, None, backend)[0, 0].cpu().float()
    assert torch.equal(result, 64 + taps[:, None] * taps[None, :])


@backends
@each_layout
@each_dtype(torch.float32, torch.float16)
def test_non_contiguous(backend: str, layout: Any, dtype: torch.dtype) -> None:
    check(upsample_conv, tuple(map(layout, inputs(2, 4, 6, 3, 4, dtype))), backend=backend, formula=formula)


@backends
@each_size(vae=(1, 32, 32, 8, 6), odd=(2, 24, 40, 5, 7), row=(1, 16, 16, 1, 9), empty=(0, 16, 16, 2, 2))
def test_with_the_unfolded_kernel(backend: str, size: tuple[int, ...]) -> None:
    """A backend that convolves the enlarged map gets the kernel as it was before folding."""
    B, C_in, C_out, H, W = size
    x = normal(B, C_in, H, W).contiguous(memory_format=torch.channels_last)
    exactly_foldable = kernel(C_out, C_in, torch.float32).mul(256).round().div(256)
    weights = prepare_conv3x3(exactly_foldable, normal(C_out))
    args = (x, phase_weights(weights.weight), weights.bias)
    check(upsample_conv, args, {"weights": weights}, backend=backend, formula=formula)


def test_phase_weights_by_hand() -> None:
    """Taps 1..9 in rows: the even phase folds rows (0) and (1, 2), the odd phase rows (0, 1) and (2)."""
    phases = phase_weights(torch.arange(1.0, 10).reshape(1, 1, 3, 3))[:, :, 0, 0]
    assert phases[0, 0].tolist() == [[1, 5], [11, 28]]
    assert phases[0, 1].tolist() == [[3, 3], [24, 15]]
    assert phases[1, 0].tolist() == [[5, 16], [7, 17]]
    assert phases[1, 1].tolist() == [[12, 9], [15, 9]]


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("x", (4, 5, 5), "x must be (B, C_in, H, W), got shape (4, 5, 5)"),
        ("phases", (6, 4, 3, 3), "phases must be (2, 2, C_out, C_in, 2, 2), got shape (6, 4, 3, 3)"),
        (
            "phases",
            (2, 2, 6, 5, 2, 2),
            "phases must be (2, 2, C_out, C_in, 2, 2) = (2, 2, 6, 4, 2, 2), got (2, 2, 6, 5, 2, 2)",
        ),
        ("bias", (4,), "bias must be (C_out,) = (6,), got (4,)"),
    ],
)
def test_bad_shape(name: str, shape: tuple[int, ...], message: str) -> None:
    shapes = {"x": (1, 4, 5, 5), "phases": (2, 2, 6, 4, 2, 2), "bias": (6,)} | {name: shape}
    with raises(ValueError, f"upsample_conv: {message}"):
        upsample_conv(**{k: torch.zeros(s) for k, s in shapes.items()})


def test_bad_dtype() -> None:
    x, phases, bias = inputs(1, 4, 6, 3, 3, torch.float32)
    with raises(TypeError, "upsample_conv: phases is torch.float16, x is torch.float32"):
        upsample_conv(x, phases.half(), bias)
