"""refiner_update in CUDA C++ (csrc/cuda/refiner_update.cu): one kernel, eight tokens with both branches a block.

Noise that comes as `Noise` is drawn inside, with the words of `philox_normal`, and never stored.
"""

from __future__ import annotations

import torch

from varsr_engine.kernels.cuda_backend import aligned, dtype_code, launch, rows_aligned
from varsr_engine.kernels.philox.cuda_kernel import position_strides
from varsr_engine.kernels.refiner_update.reference import DenoiseStep, Noise

MOST_CHANNELS, STEP_CHANNELS = 64, 8  # Z
MOST_WIDTH, STEP_WIDTH = 1024, 32  # W, which a warp holds in registers


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
    W, Z = hidden.shape[-1], x.shape[-1]
    if W % STEP_WIDTH != 0 or W > MOST_WIDTH:
        return f"W is {W}, not a multiple of {STEP_WIDTH} up to {MOST_WIDTH}"
    if Z % STEP_CHANNELS != 0 or Z > MOST_CHANNELS:
        return f"Z is {Z}, not a multiple of {STEP_CHANNELS} up to {MOST_CHANNELS}"
    for name, t in (("hidden", hidden), ("x", x), ("ratio", ratio), ("noise", noise)):
        if isinstance(t, torch.Tensor) and t.dtype != torch.float32:
            return f"{name} is {t.dtype}, not torch.float32"
    if bias.dtype != weight.dtype:
        return f"bias is {bias.dtype}, weight is {weight.dtype}"
    if shift.dtype != scale.dtype or shift.dtype not in (torch.float32, weight.dtype):
        return f"shift is {shift.dtype} and scale {scale.dtype}, not both torch.float32 or both the weight's dtype"
    return None


def refiner_update_cuda(
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
    (B, N, Z), W = x.shape, hidden.shape[-1]
    x, hidden, weight, bias = aligned(x), aligned(hidden), aligned(weight), aligned(bias)
    shift, scale = (
        rows_aligned(t.flatten(0, 2)) for t in (shift, scale)
    )  # views of a wider matrix, where they are one
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    given: torch.Tensor | None = None
    draw: tuple[torch.Tensor | None, ...] = (None, None, None)
    strides, counter = (0, 0), (0, 0)
    if isinstance(noise, Noise) and not step.last:
        draw = noise.seeds.contiguous(), noise.positions, None if noise.std is None else noise.std.contiguous()
        strides, counter = position_strides(noise.positions), (noise.step, noise.stream)
    elif isinstance(noise, torch.Tensor) and not step.last:
        given = aligned(noise)
    launch(
        "refiner_update",
        x.device,
        *(hidden, shift, scale, weight, bias, x, ratio.contiguous(), given),
        *draw,
        out,
        *(shift.stride(0), scale.stride(0), *strides),
        *(B, N, W, Z, eps),
        *step[1:-1],
        step.last,
        *counter,
        *(dtype_code(weight.dtype), dtype_code(shift.dtype)),
    )
    return out
