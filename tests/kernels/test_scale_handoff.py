"""scale_handoff: from one scale's tokens to the next scale's inputs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.harness import (
    DEVICE,
    check,
    each_backend,
    each_layout,
    each_size,
    normal,
    raises,
    run_case,
    to_float64,
)
from tests.numerics import relative_error
from varsr_engine.config import VARSR_SCALES
from varsr_engine.engine.weights import resampling_matrix
from varsr_engine.kernels import scale_handoff
from varsr_engine.kernels.scale_handoff import Handoff

backends = each_backend("scale_handoff")
Arguments = tuple[Any, ...]


def bicubic_matrix(source: int, target: int) -> Tensor:
    """(target, source) float64: Keys' cubic with A = -0.75, half-pixel centres, borders repeated, no antialias."""
    A = -0.75

    def weight(d: float) -> float:
        d = abs(d)
        if d <= 1:
            return (A + 2) * d**3 - (A + 3) * d**2 + 1
        return A * d**3 - 5 * A * d**2 + 8 * A * d - 4 * A if d < 2 else 0.0

    matrix = torch.zeros(target, source, dtype=torch.float64)
    for i in range(target):
        centre = (i + 0.5) * source / target - 0.5
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[i, min(max(tap, 0), source - 1)] += weight(centre - tap)
    return matrix


def area_matrix(source: int, target: int) -> Tensor:
    """(target, source) float64: the mean over source cells floor(i s/t) to ceil((i+1) s/t)."""
    matrix = torch.zeros(target, source, dtype=torch.float64)
    for i in range(target):
        start, end = i * source // target, -(-(i + 1) * source // target)
        matrix[i, start:end] = 1 / (end - start)
    return matrix


def inputs(B: int, side: int, next_side: int, p: int, V: int, Z: int, C: int, dtype: torch.dtype) -> Arguments:
    constants = Handoff(
        upsample=bicubic_matrix(side, p).to(DEVICE, dtype),
        phi_weight=normal(Z, Z, 3, 3, dtype=dtype, std=(9 * Z) ** -0.5),
        phi_bias=normal(Z, dtype=dtype, std=0.1),
        phi_ratio=0.5,
        downsample=area_matrix(p, next_side).to(DEVICE, dtype),
        embed_weight=normal(C, Z, dtype=dtype, std=Z**-0.5),
        embed_bias=normal(C, dtype=dtype),
    )
    tokens = torch.randint(V, (B, side * side)).to(DEVICE)
    return tokens, normal(V, Z, dtype=dtype), constants, normal(B, Z, p, p, dtype=dtype)


def both(tokens: Tensor, codebook: Tensor, constants: Handoff, f_hat: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """The next inputs, and f_hat after its update in place."""
    return scale_handoff(tokens, codebook, constants, f_hat, backend=backend), f_hat


def formula(tokens: Tensor, codebook: Tensor, constants: Handoff, f_hat: Tensor) -> tuple[Tensor, Tensor]:
    """By the given matrices, pixel by pixel of the convolution."""
    c, (B, Z, p, _) = constants, f_hat.shape
    side = c.upsample.shape[1]
    h = torch.stack([codebook[row].t().reshape(Z, side, side) for row in tokens]) if B else f_hat[:, :, :side, :side]
    h = torch.einsum("ik,jl,bzkl->bzij", c.upsample, c.upsample, h)
    framed, phi = F.pad(h, (1, 1, 1, 1)), torch.zeros_like(h)
    for row in range(3):
        for column in range(3):
            shifted = framed[:, :, row : row + p, column : column + p]
            phi += torch.einsum("oz,bzij->boij", c.phi_weight[:, :, row, column], shifted)
    phi += c.phi_bias[:, None, None]
    f_hat = f_hat + (1 - c.phi_ratio) * h + c.phi_ratio * phi
    pooled = torch.einsum("ik,jl,bzkl->bijz", c.downsample, c.downsample, f_hat)
    return (pooled @ c.embed_weight.t() + c.embed_bias).flatten(1, 2), f_hat


def with_torch_resizing(tokens: Tensor, codebook: Tensor, constants: Handoff, f_hat: Tensor) -> tuple[Tensor, Tensor]:
    """As section 7 says it, with torch's own bicubic and area interpolation instead of the matrices."""
    c, p, side = constants, f_hat.shape[-1], constants.upsample.shape[1]
    h = F.embedding(tokens, codebook).transpose(1, 2).unflatten(2, (side, side))
    h = F.interpolate(h, size=(p, p), mode="bicubic")
    f_hat = f_hat + 0.5 * h + 0.5 * F.conv2d(h, c.phi_weight, c.phi_bias, padding=1)
    pooled = F.interpolate(f_hat, size=(c.downsample.shape[0],) * 2, mode="area")
    return F.linear(pooled.flatten(2).mT, c.embed_weight, c.embed_bias), f_hat


@backends
@each_size(
    varsr=(2, 2, 3, 8, 16, 8, 24),
    first=(1, 1, 2, 6, 4, 4, 8),
    last=(1, 4, 6, 6, 16, 8, 16),
    odd=(3, 3, 4, 7, 5, 5, 11),
    one=(1, 1, 1, 1, 1, 1, 1),
    empty=(0, 2, 3, 4, 4, 4, 8),
    full=(2, 24, 32, 32, 4096, 32, 1536),
)
def test_formula(backend: str, size: tuple[int, ...]) -> None:
    check(both, inputs(*size, torch.float32), backend=backend, formula=formula)


@pytest.mark.parametrize(("side", "next_side"), list(itertools.pairwise(VARSR_SCALES)))
def test_reference_resizes_as_torch_does(side: int, next_side: int) -> None:
    """Every published pair of scales, in float64."""
    args = inputs(2, side, next_side, 32, 16, 3, 5, torch.float64)
    expected = with_torch_resizing(*args)
    for actual, wanted in zip(both(*args, backend="torch"), expected, strict=True):
        assert relative_error(actual, wanted) <= 1e-13


@pytest.mark.parametrize("side", VARSR_SCALES[:-1])
def test_engine_matrices(side: int) -> None:
    """The constants that the engine computes from torch are the two filters, written out here."""
    eps = torch.finfo(torch.float32).eps
    assert (resampling_matrix("bicubic", side, 32) - bicubic_matrix(side, 32)).abs().max() <= 32 * eps
    assert (resampling_matrix("area", 32, side) - area_matrix(32, side)).abs().max() <= eps


@backends
def test_against_torch_resizing(backend: str) -> None:
    args = inputs(2, 3, 4, 8, 16, 8, 24, torch.float32)
    exact = with_torch_resizing(*to_float64(args))
    for actual, wanted in zip(run_case(both, args, None, backend), exact, strict=True):
        assert relative_error(actual, wanted) <= 4 * torch.finfo(torch.float32).eps


@backends
def test_copies_lie_behind_each_other(backend: str) -> None:
    def twice(*args: Any, backend: str) -> Any:
        return scale_handoff(*args, copies=2, backend=backend)

    args = inputs(2, 2, 3, 8, 16, 16, 40, torch.float32)
    once, both = (run_case(f, args, None, backend) for f in (scale_handoff, twice))
    assert torch.equal(both, once.repeat(2, 1, 1))


@backends
@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.3])
def test_phi_ratio(backend: str, ratio: float) -> None:
    tokens, codebook, constants, f_hat = inputs(1, 2, 3, 5, 8, 4, 8, torch.float32)
    check(both, (tokens, codebook, constants._replace(phi_ratio=ratio), f_hat), backend=backend, formula=formula)


@backends
def test_large_sum_keeps_small_contributions(backend: str) -> None:
    tokens, codebook, constants, f_hat = inputs(2, 3, 4, 8, 16, 4, 8, torch.float32)
    check(both, (tokens, codebook, constants, f_hat + 1e4), backend=backend, formula=formula)


@backends
@each_layout
def test_non_contiguous(backend: str, layout: Any) -> None:
    tokens, codebook, constants, f_hat = inputs(2, 2, 3, 6, 8, 4, 8, torch.float32)
    tensors = {k: layout(v) for k, v in constants._asdict().items() if isinstance(v, Tensor)}
    args = (tokens, layout(codebook), constants._replace(**tensors), layout(f_hat))
    check(both, args, backend=backend, formula=formula)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": (8,)}, "tokens must be (B, p_k^2), got shape (8,)"),
        ({"tokens": (2, 5)}, "tokens must be (B, p_k^2) = (2, 4), got (2, 5)"),
        ({"f_hat": (2, 4, 36)}, "f_hat must be (B, Z, p, p), got shape (2, 4, 36)"),
        ({"f_hat": (2, 4, 6, 5)}, "f_hat must be (B, Z, p, p) = (2, 4, 6, 6), got (2, 4, 6, 5)"),
        ({"phi_weight": (4, 4, 1, 1)}, "phi_weight must be (Z, Z, 3, 3) = (4, 4, 3, 3), got (4, 4, 1, 1)"),
        ({"downsample": (3, 5)}, "downsample must be (p_{k+1}, p) = (3, 6), got (3, 5)"),
    ],
)
def test_bad_shape(change: dict[str, tuple[int, ...]], message: str) -> None:
    tokens, codebook, constants, f_hat = inputs(2, 2, 3, 6, 8, 4, 8, torch.float32)
    bad = {name: torch.zeros(shape, device=DEVICE) for name, shape in change.items()}
    tokens, f_hat = bad.pop("tokens", tokens), bad.pop("f_hat", f_hat)
    with raises(ValueError, f"scale_handoff: {message}"):
        scale_handoff(tokens, codebook, constants._replace(**bad), f_hat)
