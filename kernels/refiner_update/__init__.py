"""The end of a denoising step: final layer, guidance, clamped x0, posterior, noise."""

from __future__ import annotations

import torch

from varsr_engine.dispatch import Op
from varsr_engine.kernels import cuda_backend
from varsr_engine.kernels.refiner_update import cpu_kernel
from varsr_engine.kernels.refiner_update.reference import DenoiseStep as DenoiseStep
from varsr_engine.kernels.refiner_update.reference import Noise as Noise
from varsr_engine.kernels.refiner_update.reference import refiner_update_reference
from varsr_engine.kernels.spec import check_ndim, check_shape
from varsr_engine.kernels.triton_backend import lazily

_op = Op("refiner_update")
_op.register("torch", refiner_update_reference)
_op.register("cpu", cpu_kernel.refiner_update_cpu, cpu_kernel.why_not)
_op.register("triton", *lazily("varsr_engine.kernels.refiner_update.triton_kernel", "refiner_update_triton"))
_op.register(
    "cuda",
    *cuda_backend.lazily("varsr_engine.kernels.refiner_update.cuda_kernel", "refiner_update_cuda"),
    automatic=cuda_backend.MEASURED,
)


def refiner_update(
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
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """(eps, v) = linear(layer_norm(hidden) * (1 + scale) + shift); eps = (1 + t) eps_cond - t eps_uncond; one step.

    hidden, shift, scale (2, B, N, W): both branches, the modulation in hidden's dtype (float32) or 16-bit;
    weight (2Z, W), bias (2Z,); x and noise (B, N, Z) float32 (noise is not read at the last step); ratio t (B,).
    Noise may also be `Noise`: what `philox_normal` would give, which a kernel may draw itself.
    Returns x_{t-1} (B, N, Z).
    Source: VARSR section 3.4; Nichol and Dhariwal, "Improved DDPM", equations 9 to 15.
    """
    op = "refiner_update"
    check_ndim(op, "hidden", hidden, "(2, B, N, W)", 4)
    check_ndim(op, "x", x, "(B, N, Z)", 3)
    B, N, Z = x.shape
    W = hidden.shape[-1]
    for name, t in (("hidden", hidden), ("shift", shift), ("scale", scale)):
        check_shape(op, name, t, "(2, B, N, W)", (2, B, N, W))
    check_shape(op, "weight", weight, "(2Z, W)", (2 * Z, W))
    check_shape(op, "bias", bias, "(2Z,)", (2 * Z,))
    check_shape(op, "ratio", ratio, "(B,)", (B,))
    if not step.last:
        if noise is None:
            raise ValueError(f"{op}: noise must be (B, N, Z) = {(B, N, Z)} before the last step, got None")
        if isinstance(noise, Noise):
            check_shape(op, "noise.seeds", noise.seeds, "(B,)", (B,))
            positions = (B, N) if noise.positions.ndim == 2 else (N,)
            check_shape(op, "noise.positions", noise.positions, "(N,) or (B, N)", positions)
        else:
            check_shape(op, "noise", noise, "(B, N, Z)", (B, N, Z))
    result: torch.Tensor = _op(hidden, shift, scale, weight, bias, x, ratio, step, noise, eps, backend=backend)
    return result
