"""refiner_update on the CPU: two small products between two sweeps of csrc/cpu/fused.cpp."""

from __future__ import annotations

import torch

from varsr_engine.kernels import cpu_library as cpu
from varsr_engine.kernels.adaln.cpu_kernel import modulated_norm
from varsr_engine.kernels.linear.cpu_kernel import product
from varsr_engine.kernels.philox.cpu_kernel import philox_normal_cpu
from varsr_engine.kernels.refiner_update.reference import DenoiseStep, Noise


def why_not(
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
) -> str | None:
    given = [noise] if isinstance(noise, torch.Tensor) else []
    tensors = (hidden, shift, scale, weight, bias, x, *given)
    return cpu.why_not(*tensors, width=hidden.shape[-1]) or cpu.why_not(width=x.shape[-1])


def refiner_update_cpu(
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
    B, N, Z = x.shape
    rows, scales, shifts = (t.flatten(0, 2) for t in (hidden, scale, shift))
    modulated = cpu.scratch("normalised", *rows.shape)
    modulated_norm(rows.contiguous(), None, None, scales, shifts, 1, eps, modulated)
    cond, uncond = modulated.chunk(2)
    # The variance is dead where no noise is added, and always in the negative branch.
    width = Z if step.last else 2 * Z
    prediction = product(cond, weight[:width], torch.empty(B * N, width), bias[:width])
    negative = product(uncond, weight[:Z], torch.empty(B * N, Z), bias[:Z])
    if isinstance(noise, Noise):
        steps = range(noise.step, noise.step + 1)
        noise = philox_normal_cpu(noise.seeds, noise.positions, Z, steps, noise.stream, noise.std)
    out = torch.empty(B, N, Z)
    given = None if step.last or noise is None else noise.contiguous()
    ratio = ratio.to(torch.float32).contiguous()
    cpu.call("denoise", prediction, width, negative, ratio, x.contiguous(), given, out, B * N, N, Z, *step[1:7])
    return out
