"""One residual block of the diffusion refiner, row by row: every token is its own sample."""

from __future__ import annotations

import torch

from varsr_engine.dispatch import Op
from varsr_engine.kernels.panels import check_weight
from varsr_engine.kernels.refiner_block import cpu_kernel
from varsr_engine.kernels.refiner_block.reference import RefinerBlockWeights as RefinerBlockWeights
from varsr_engine.kernels.refiner_block.reference import refiner_block_reference
from varsr_engine.kernels.spec import check_ndim, check_shape
from varsr_engine.kernels.triton_backend import lazily

_op = Op("refiner_block")
_op.register("torch", refiner_block_reference)
_op.register("cpu", cpu_kernel.refiner_block_cpu, cpu_kernel.why_not)
_op.register("triton", *lazily("varsr_engine.kernels.refiner_block.triton_kernel", "refiner_block_triton"))


def refiner_block(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    gate: torch.Tensor,
    weights: RefinerBlockWeights,
    eps: float = 1e-6,
    *,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """x + gate * mlp(layer_norm(x) * (1 + scale) + shift), mlp = linear, SiLU, linear; `out=x` updates in place.

    x, shift, scale, gate (R, W), the result in x's dtype (float32 in the engine, where the other three may be 16-bit);
    the products run in the weights' dtype.
    Source: VARSR section 3.4 (diffusion refiner), after "Autoregressive Image Generation without Vector Quantization".
    """
    op = "refiner_block"
    check_ndim(op, "x", x, "(R, W)", 2)
    R, W = x.shape
    for name, t in (("shift", shift), ("scale", scale), ("gate", gate)):
        check_shape(op, name, t, "(R, W)", (R, W))
    check_weight(op, "in_weight", weights.in_weight, "(W, W)", (W, W))
    check_weight(op, "out_weight", weights.out_weight, "(W, W)", (W, W))
    result: torch.Tensor = _op(x, shift, scale, gate, weights, eps, out, backend=backend)
    return result
