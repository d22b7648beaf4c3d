"""conv3x3: a 3x3 convolution with zero padding, and the residual or SiLU that may follow it.

On a GPU a library makes the product and rounds it, as torch does: the kernel after it rounds a second time.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.harness import check, each_backend, each_dtype, each_size, normal, raises, run_case
from varsr_engine.errors import KernelUnavailableError
from varsr_engine.kernels import conv3x3
from varsr_engine.kernels.conv3x3 import Conv3x3Weights, prepare_conv3x3

backends = each_backend("conv3x3")


def inputs(B: int, C_in: int, C_out: int, H: int, W: int, dtype: torch.dtype) -> tuple[Tensor, Conv3x3Weights]:
    x = normal(B, C_in, H, W, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = normal(C_out, C_in, 3, 3, dtype=dtype, std=(9 * C_in) ** -0.5)
    return x, prepare_conv3x3(weight, normal(C_out, dtype=dtype))


def formula(
    x: Tensor, weights: Conv3x3Weights, residual: Tensor | None = None, stride: int = 1, silu: bool = False
) -> Tensor:
    """The sum over the nine shifted images, each a product over channels."""
    B, _, H, W = x.shape
    framed = torch.zeros(B, x.shape[1], H + 2, W + 2, dtype=x.dtype, device=x.device)
    framed[:, :, 1:-1, 1:-1] = x
    y = weights.bias[:, None, None].expand(B, -1, H, W).clone()
    for dy in range(3):
        for dx in range(3):
            shifted = framed[:, :, dy : dy + H, dx : dx + W]
            y += torch.einsum("bihw,oi->bohw", shifted, weights.weight[:, :, dy, dx])
    y = y[:, :, ::stride, ::stride]
    y = y if residual is None else y + residual
    return y / (1 + torch.exp(-y)) if silu else y


@backends
@each_dtype()
@each_size(
    vae=(1, 32, 32, 16, 16),
    widens=(1, 16, 48, 9, 12),
    narrows=(2, 64, 32, 8, 8),
    odd_sides=(1, 24, 40, 7, 5),
    odd_channels=(1, 17, 19, 6, 6),
    image=(1, 3, 16, 10, 10),
    row=(1, 32, 32, 1, 9),
    column=(1, 32, 32, 9, 1),
    one=(1, 16, 16, 1, 1),
    large=(1, 32, 32, 50, 70),
    empty=(0, 32, 32, 4, 4),
    full=(1, 160, 160, 512, 512),
)
def test_formula(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    check(conv3x3, inputs(*size, dtype), backend=backend, formula=formula, rounds_once=backend != "triton")


@backends
@each_dtype()
def test_residual(backend: str, dtype: torch.dtype) -> None:
    x, weights = inputs(2, 32, 48, 6, 9, dtype)
    residual = normal(2, 48, 6, 9, dtype=dtype).contiguous(memory_format=torch.channels_last)
    check(conv3x3, (x, weights, residual), backend=backend, formula=formula)


@backends
@each_dtype()
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("silu", [True, False], ids=["silu", "plain"])
@pytest.mark.parametrize("sides", [(12, 8), (7, 9)], ids=["even", "odd"])
def test_stride_and_silu(backend: str, dtype: torch.dtype, stride: int, silu: bool, sides: tuple[int, int]) -> None:
    x, weights = inputs(2, 32, 48, *sides, dtype)
    check(conv3x3, (x, weights), {"stride": stride, "silu": silu}, backend=backend, formula=formula)
    h, w = (-(-side // stride) for side in sides)
    residual = normal(2, 48, h, w, dtype=dtype).contiguous(memory_format=torch.channels_last)
    check(conv3x3, (x, weights, residual), {"stride": stride, "silu": silu}, backend=backend, formula=formula)


@backends
def test_out_may_be_the_residual(backend: str) -> None:
    x, weights = inputs(1, 32, 32, 5, 4, torch.float32)
    residual = normal(1, 32, 5, 4).contiguous(memory_format=torch.channels_last)
    expected = conv3x3(x, weights, residual, backend="torch")
    try:
        result = conv3x3(x, weights, residual, out=residual, backend=backend)
    except KernelUnavailableError as error:
        pytest.skip(str(error))
    assert result.data_ptr() == residual.data_ptr()
    assert torch.allclose(result, expected, atol=1e-5)


@backends
def test_other_layouts(backend: str) -> None:
    x, weights = inputs(2, 32, 32, 6, 5, torch.float32)
    residual = normal(2, 32, 6, 5)
    check(conv3x3, (x.contiguous(), weights, residual), backend=backend, formula=formula)


@backends
def test_one_thread_gives_what_two_give(backend: str) -> None:
    """Each output is one thread's work, so that the number of threads cannot show."""
    args = inputs(1, 32, 32, 40, 40, torch.float32)
    threads = torch.get_num_threads()
    together = run_case(conv3x3, args, None, backend)
    try:
        torch.set_num_threads(1)
        alone = run_case(conv3x3, args, None, backend)
    finally:
        torch.set_num_threads(threads)
    assert torch.allclose(alone, together, rtol=0, atol=2e-6 if backend == "torch" else 0)


def test_shapes() -> None:
    x, weights = inputs(1, 16, 24, 4, 4, torch.float32)
    with raises(ValueError, "conv3x3: x must be (B, C_in, H, W), got shape (16, 4, 4)"):
        conv3x3(x[0], weights)
    with raises(ValueError, "conv3x3: weight must be (C_out, C_in, 3, 3) = (24, 8, 3, 3), got (24, 16, 3, 3)"):
        conv3x3(x[:, :8], weights)
    with raises(ValueError, "conv3x3: residual must be (B, C_out, H', W') = (1, 24, 4, 4), got (1, 16, 4, 4)"):
        conv3x3(x, weights, x)
    with raises(ValueError, "conv3x3: stride must be positive, got 0"):
        conv3x3(x, weights, stride=0)
    with pytest.raises(TypeError, match=r"weight is torch.float32, x is torch.float64"):
        conv3x3(x.double(), weights)


def test_gradients() -> None:
    x, weights = inputs(1, 2, 3, 4, 3, torch.float64)
    tensors = tuple(t.requires_grad_() for t in (x, *weights[:2]))
    assert torch.autograd.gradcheck(lambda x, w, b: conv3x3(x, Conv3x3Weights(w, b)), tensors)
