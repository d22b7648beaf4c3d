"""The specification of refiner_update, in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from varsr_engine.kernels.guided_sample.reference import guide
from varsr_engine.kernels.philox.reference import philox_normal_reference
from varsr_engine.kernels.spec import Cost


class DenoiseStep(NamedTuple):
    """Constants of one reverse step of the respaced schedule, computed in float64."""

    timestep: int
    x0_from_x: float  # 1 / sqrt(alpha_bar)
    x0_from_eps: float  # sqrt(1 / alpha_bar - 1)
    mean_from_x0: float
    mean_from_x: float
    log_beta: float  # largest variance, at v = 1
    log_beta_tilde: float  # smallest variance, at v = -1
    last: bool  # t = 0: no noise


class Noise(NamedTuple):
    """A step's noise (B, N, Z) as `philox_normal` draws it, for kernels that draw it themselves."""

    seeds: torch.Tensor  # (B,) int64
    positions: torch.Tensor  # (B, N), or (N,) for all images, int64
    step: int
    stream: int
    std: torch.Tensor | None  # (B,) float32


def denoise(
    x: torch.Tensor, eps: torch.Tensor, v: torch.Tensor | None, step: DenoiseStep, noise: torch.Tensor | None
) -> torch.Tensor:
    """x_{t-1} of the ancestral sampler, from the guided noise estimate and the variance interpolation v."""
    x0 = (step.x0_from_x * x - step.x0_from_eps * eps).clamp(-1, 1)
    mean = step.mean_from_x0 * x0 + step.mean_from_x * x
    if step.last or v is None or noise is None:
        return mean
    upper = (v + 1) / 2
    log_variance = upper * step.log_beta + (1 - upper) * step.log_beta_tilde
    return mean + torch.exp(0.5 * log_variance) * noise


def refiner_update_reference(
    hidden: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    x: torch.Tensor,
    ratio: torch.Tensor,
    step: DenoiseStep,
    noise: torch.Tensor | Noise | None,
    eps: float = 1e-6,
) -> torch.Tensor:
    Z = x.shape[-1]
    if isinstance(noise, Noise):
        steps = range(noise.step, noise.step + 1)
        noise = philox_normal_reference(noise.seeds, noise.positions, Z, steps, noise.stream, noise.std)[0]
    shift, scale = shift.to(hidden.dtype), scale.to(hidden.dtype)
    normalised = F.layer_norm(hidden, hidden.shape[-1:], eps=eps)
    cond, uncond = (normalised * (1 + scale) + shift).to(weight.dtype)
    needed = (
        Z if step.last else 2 * Z
    )  # the variance is dead where no noise is added, and always in the negative branch
    prediction = F.linear(cond, weight[:needed], bias[:needed]).to(x.dtype)
    negative = F.linear(uncond, weight[:Z], bias[:Z]).to(x.dtype)
    eps_guided = guide(prediction[..., :Z], negative, ratio)
    return denoise(x, eps_guided, None if step.last else prediction[..., Z:], step, noise)


def refiner_update_cost(B: int, N: int, W: int, Z: int, element: int = 4) -> Cost:
    return Cost(flops=2 * B * N * W * 3 * Z, bytes=B * N * (2 * W * (4 + 2 * element) + 12 * Z) + element * 2 * Z * W)
