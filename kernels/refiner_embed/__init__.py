"""The start of a denoising step: what every modulation is made from, and the state as the blocks take it."""

from __future__ import annotations

import torch

from varsr_engine.dispatch import Op
from varsr_engine.kernels.panels import check_weight
from varsr_engine.kernels.refiner_embed import cpu_kernel
from varsr_engine.kernels.refiner_embed.reference import refiner_embed_reference
from varsr_engine.kernels.spec import check_ndim, check_shape
from varsr_engine.kernels.triton_backend import lazily

_op = Op("refiner_embed")
_op.register("torch", refiner_embed_reference)
_op.register("cpu", cpu_kernel.refiner_embed_cpu, cpu_kernel.why_not)
_op.register("triton", *lazily("varsr_engine.kernels.refiner_embed.triton_kernel", "refiner_embed_triton"))


def refiner_embed(
    cond: torch.Tensor,
    time: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """y = silu(cond + time) and h = x W^T + b, h twice: of the conditional and of the unconditional branch.

    cond (2M, W), time (W,) float32, x (M, Z) float32, weight (W, Z) or its panels, bias (W,).
    Returns y (2M, W) in the weight's dtype, in which the product runs, and h (2M, W) in x's dtype.
    Source: VARSR section 3.4 (diffusion refiner).
    """
    op = "refiner_embed"
    check_ndim(op, "x", x, "(M, Z)", 2)
    M, Z = x.shape
    width, _ = check_weight(op, "weight", weight, "(W, Z)", (None, Z))
    check_shape(op, "cond", cond, "(2M, W)", (2 * M, width))
    check_shape(op, "time", time, "(W,)", (width,))
    check_shape(op, "bias", bias, "(W,)", (width,))
    result: tuple[torch.Tensor, torch.Tensor] = _op(cond, time, x, weight, bias, backend=backend)
    return result
