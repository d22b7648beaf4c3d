"""refiner_update: final layer, guidance, clamped x0, posterior mean and variance, noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
    map_tensors,
    normal,
    raises,
    run_case,
)
from varsr_engine.kernels import philox_normal, refiner_update
from varsr_engine.kernels.refiner_update import DenoiseStep, Noise
from varsr_engine.model.refiner import Schedule

backends = each_backend("refiner_update")
Arguments = tuple[Any, ...]
TIMESTEPS = (999, 888, 777, 666, 555, 444, 333, 222, 111, 0)
STEPS = {s.timestep: s for s in Schedule.cosine(1000).reverse_steps(sorted(TIMESTEPS))}


# --- section 8 of the specification, transcribed ---------------------------------------------------------------------


@dataclass(frozen=True)
class SpecStep:
    """alpha_bar here and one kept step earlier, beta' and beta~ of the respaced process."""

    bar: float
    before: float
    beta: float
    tilde: float


def spec_schedule() -> dict[int, SpecStep]:
    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    bars, product = {}, 1.0
    for i in range(1000):
        product *= 1 - min(1 - alpha_bar((i + 1) / 1000) / alpha_bar(i / 1000), 0.999)
        bars[i] = product
    steps, before = {}, 1.0
    for t in sorted(TIMESTEPS):
        beta = 1 - bars[t] / before
        steps[t] = SpecStep(bars[t], before, beta, beta * (1 - before) / (1 - bars[t]))
        before = bars[t]
    steps[0] = SpecStep(steps[0].bar, 1.0, steps[0].beta, steps[111].tilde)
    return steps


SPEC = spec_schedule()


def formula(
    hidden: Tensor,
    shift: Tensor,
    scale: Tensor,
    weight: Tensor,
    bias: Tensor,
    x: Tensor,
    ratio: Tensor,
    step: DenoiseStep,
    noise: Tensor | None,
    eps: float = 1e-6,
) -> Tensor:
    s, t, Z = SPEC[step.timestep], ratio[:, None, None], x.shape[-1]
    centred = hidden - hidden.mean(-1, keepdim=True)
    normalised = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    cond, uncond = torch.einsum("zbnw,ow->zbno", normalised * (1 + scale) + shift, weight) + bias
    e = (1 + t) * cond[..., :Z] - t * uncond[..., :Z]
    x0 = (x / math.sqrt(s.bar) - math.sqrt(1 / s.bar - 1) * e).clamp(-1, 1)
    mean = s.beta * math.sqrt(s.before) / (1 - s.bar) * x0 + (1 - s.before) * math.sqrt(1 - s.beta) / (1 - s.bar) * x
    if step.timestep == 0:
        return mean
    v = cond[..., Z:]
    log_variance = (v + 1) / 2 * math.log(s.beta) + (1 - v) / 2 * math.log(s.tilde)
    return mean + torch.exp(log_variance / 2) * noise


def inputs(B: int, N: int, W: int, Z: int, timestep: int, dtype: torch.dtype, guidance: float = 6.0) -> Arguments:
    """x is a noisy version of a clean residual, so that the clamp bites on some elements only."""
    bar, noise = SPEC[timestep].bar, normal(B, N, Z)
    x = math.sqrt(bar) * normal(B, N, Z, std=0.7) + math.sqrt(1 - bar) * noise
    return (
        normal(2, B, N, W),
        normal(2, B, N, W, std=0.5),
        normal(2, B, N, W, std=0.5),
        normal(2 * Z, W, dtype=dtype, std=W**-0.5 * 0.5),
        normal(2 * Z, dtype=dtype, std=0.1),
        x,
        torch.linspace(guidance, 0, max(B, 1), device=DEVICE)[:B],
        STEPS[timestep],
        normal(B, N, Z),
    )


# --- tests -----------------------------------------------------------------------------------------------------------


def test_schedule_is_the_specification() -> None:
    schedule = Schedule.cosine(1000)
    assert schedule.timesteps(10) == tuple(reversed(TIMESTEPS))
    steps = schedule.reverse_steps(schedule.timesteps(10))
    assert [s.timestep for s in steps] == list(TIMESTEPS)
    assert [s.last for s in steps] == [False] * 9 + [True]
    for s in steps:
        spec = SPEC[s.timestep]
        assert s.x0_from_x == pytest.approx(1 / math.sqrt(spec.bar), rel=1e-9)
        assert s.x0_from_eps == pytest.approx(math.sqrt(1 / spec.bar - 1), rel=1e-9)
        assert s.mean_from_x0 == pytest.approx(spec.beta * math.sqrt(spec.before) / (1 - spec.bar), rel=1e-9)
        mean_from_x = (1 - spec.before) * math.sqrt(1 - spec.beta) / (1 - spec.bar)
        assert s.mean_from_x == pytest.approx(mean_from_x, rel=1e-9)
        assert s.log_beta == pytest.approx(math.log(spec.beta), rel=1e-9)
        assert s.log_beta_tilde == pytest.approx(math.log(spec.tilde), rel=1e-9)


@backends
@each_dtype()
@pytest.mark.parametrize("timestep", TIMESTEPS)
def test_every_step(backend: str, dtype: torch.dtype, timestep: int) -> None:
    """Guidance and 1 / sqrt(alpha_bar) amplify a rounding by up to 2e5 before the clamp: no fixed bound holds."""
    check(refiner_update, inputs(2, 4, 32, 8, timestep, dtype), backend=backend, formula=formula, roundings=None)


@backends
@each_dtype()
@each_size(varsr=(2, 9, 64, 16), odd=(3, 5, 37, 7), one=(1, 1, 2, 1), empty=(0, 4, 16, 8), full=(1, 1024, 1024, 32))
def test_formula(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    args = inputs(*size, 444, dtype)
    result = check(refiner_update, args, backend=backend, formula=formula, roundings=None)
    assert result.dtype == torch.float32


@backends
@each_dtype()
def test_without_guidance_the_error_is_small(backend: str, dtype: torch.dtype) -> None:
    args = inputs(2, 9, 64, 16, 111, dtype, guidance=0.0)
    check(refiner_update, args, backend=backend, formula=formula)


@backends
def test_eps(backend: str) -> None:
    hidden, *rest = inputs(2, 3, 32, 8, 333, torch.float32)
    check(refiner_update, (hidden * 0.1, *rest, 0.05), backend=backend, formula=formula, roundings=None)


@backends
@each_dtype()
def test_clamped_everywhere(backend: str, dtype: torch.dtype) -> None:
    """x0 = 1 where x is huge: the mean then depends on x alone, exactly."""
    hidden, shift, scale, weight, bias, x, ratio, _, _ = inputs(2, 4, 32, 8, 0, dtype)
    step = STEPS[0]
    result = run_case(
        refiner_update, (hidden, shift, scale, weight, bias, x.abs() + 1e4, ratio, step, None), None, backend
    )
    expected = step.mean_from_x0 + step.mean_from_x * (x.abs().double() + 1e4)
    assert ((result - expected).abs() <= 4 * torch.finfo(torch.float32).eps * expected.abs()).all()


@backends
@each_dtype()
def test_large_mean_of_hidden(backend: str, dtype: torch.dtype) -> None:
    hidden, *rest = inputs(2, 4, 32, 8, 111, dtype, guidance=0.0)
    check(refiner_update, (hidden + 1e3, *rest), backend=backend, formula=formula, roundings=None)


@backends
@pytest.mark.parametrize("noise", ["none", "nan", "wrong shape"])
def test_last_step_reads_no_noise(backend: str, noise: str) -> None:
    *args, last_noise = inputs(2, 4, 32, 8, 0, torch.float32)
    expected = run_case(refiner_update, (*args, last_noise), None, backend)
    given = {"none": None, "nan": torch.full_like(last_noise, math.nan), "wrong shape": last_noise[:1, :1]}[noise]
    assert torch.equal(run_case(refiner_update, (*args, given), None, backend), expected)


@backends
def test_variance_of_the_unconditional_branch_is_dead(backend: str) -> None:
    """Noise is scaled by v of the conditional branch alone, and unguided."""
    hidden, shift, scale, weight, bias, x, _, step, noise = inputs(1, 4, 32, 8, 555, torch.float32)
    zero = torch.zeros(1, device=DEVICE)
    other = hidden.clone()
    other[1] += normal(1, 4, 32)
    results = [
        run_case(refiner_update, (h, shift, scale, weight, bias, x, zero, step, noise), None, backend)
        for h in (hidden, other)
    ]
    assert torch.equal(*results)


@backends
@each_layout
@each_dtype(torch.float32, torch.float16)
def test_non_contiguous(backend: str, layout: Any, dtype: torch.dtype) -> None:
    *tensors, step, noise = inputs(2, 6, 32, 8, 444, dtype)
    args = (*map_tensors(tuple(tensors), layout), step, layout(noise))
    check(refiner_update, args, backend=backend, formula=formula, roundings=None)


@backends
@each_dtype()
def test_modulation_from_one_product(backend: str, dtype: torch.dtype) -> None:
    """Shift and scale are column ranges of one matrix in the compute dtype, as in the engine."""
    hidden, _, _, *rest = inputs(2, 6, 32, 8, 444, dtype)
    parts = normal(24, 5 * 32, dtype=dtype, std=0.5).split(32, dim=1)[1:3]
    args = (hidden, *(t.unflatten(0, (2, 2, 6)) for t in parts), *rest)
    check(refiner_update, args, backend=backend, formula=formula, roundings=None)


@backends
def test_wide_rows(backend: str) -> None:
    """More than a kernel's step holds, with a mean that drifts along the row."""
    hidden, *rest = inputs(1, 3, 1100, 8, 111, torch.float32, guidance=0.0)
    hidden += torch.arange(1100, device=hidden.device) / 20
    check(refiner_update, (hidden, *rest), backend=backend, formula=formula, roundings=None)


SHAPES: dict[str, tuple[int, ...]] = {
    "hidden": (2, 3, 5, 8),
    "shift": (2, 3, 5, 8),
    "scale": (2, 3, 5, 8),
    "weight": (4, 8),
    "bias": (4,),
    "x": (3, 5, 2),
    "ratio": (3,),
    "noise": (3, 5, 2),
}


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("hidden", (6, 5, 8), "hidden must be (2, B, N, W), got shape (6, 5, 8)"),
        ("hidden", (1, 3, 5, 8), "hidden must be (2, B, N, W) = (2, 3, 5, 8), got (1, 3, 5, 8)"),
        ("x", (15, 2), "x must be (B, N, Z), got shape (15, 2)"),
        ("shift", (2, 3, 5, 7), "shift must be (2, B, N, W) = (2, 3, 5, 8), got (2, 3, 5, 7)"),
        ("scale", (2, 3, 1, 8), "scale must be (2, B, N, W) = (2, 3, 5, 8), got (2, 3, 1, 8)"),
        ("weight", (2, 8), "weight must be (2Z, W) = (4, 8), got (2, 8)"),
        ("bias", (2,), "bias must be (2Z,) = (4,), got (2,)"),
        ("ratio", (1,), "ratio must be (B,) = (3,), got (1,)"),
        ("noise", (5, 2), "noise must be (B, N, Z) = (3, 5, 2), got (5, 2)"),
        ("noise", None, "noise must be (B, N, Z) = (3, 5, 2) before the last step, got None"),
    ],
)
def test_bad_shape(name: str, shape: tuple[int, ...] | None, message: str) -> None:
    tensors = {k: s and torch.zeros(s) for k, s in (SHAPES | {name: shape}).items()}
    with raises(ValueError, f"refiner_update: {message}"):
        refiner_update(**tensors, step=STEPS[444])


# --- noise that a kernel draws ---------------------------------------------------------------------------------------


@backends
def test_noise_to_draw_is_that_of_philox_normal(backend: str) -> None:
    *args, _ = inputs(2, 4, 32, 8, 444, torch.float32)
    seeds, positions = torch.tensor([3, 2**33], device=DEVICE), torch.arange(65536, 65540, device=DEVICE)
    std = torch.tensor([0.5, 2.0], device=DEVICE)
    noise = run_case(philox_normal, (seeds, positions, 8), {"step": 2, "stream": 1, "std": std}, backend)
    given = run_case(refiner_update, (*args, noise), None, backend)
    assert torch.equal(run_case(refiner_update, (*args, Noise(seeds, positions, 2, 1, std)), None, backend), given)


def test_bad_shape_of_noise_to_draw() -> None:
    *args, _ = inputs(2, 4, 32, 8, 444, torch.float32)
    seeds = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    with raises(ValueError, "refiner_update: noise.positions must be (N,) or (B, N) = (4,), got (5,)"):
        refiner_update(*args, Noise(seeds, torch.arange(5), 2, 1, None))
    with raises(ValueError, "refiner_update: noise.seeds must be (B,) = (2,), got (1,)"):
        refiner_update(*args, Noise(seeds[:1], torch.arange(4), 2, 1, None))
