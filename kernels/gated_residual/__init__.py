"""The projections that end attention and FFN: linear layer, gate, residual addition."""

from __future__ import annotations

import torch

from varsr_engine.dispatch import Op
from varsr_engine.kernels.gated_residual import cpu_kernel
from varsr_engine.kernels.gated_residual.reference import gated_residual_reference
from varsr_engine.kernels.panels import check_weight
from varsr_engine.kernels.quantized import Rows, Weight, check_operands, unquantized, values_of
from varsr_engine.kernels.spec import check_dtype, check_ndim, check_shape
from varsr_engine.kernels.triton_backend import lazily

_op = Op("gated_residual")
_op.register("torch", gated_residual_reference)
_op.register("cpu", cpu_kernel.gated_residual_cpu, unquantized(cpu_kernel.why_not))
_op.register("triton", *lazily("varsr_engine.kernels.gated_residual.triton_kernel", "gated_residual_triton", fp8=True))


def gated_residual(
    residual: torch.Tensor,
    x: Rows,
    weight: Weight,
    bias: torch.Tensor,
    gate: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """residual + gate * (x W^T + b); `out=residual` updates it in place.

    residual (B, L, C) float32, x (B, L, K), weight (C, K) or its panels, bias (C,), gate (B, C) in residual's dtype.
    x and weight may both be quantized.
    Source: VARSR section 3 (gates of adaLN).
    """
    op = "gated_residual"
    check_ndim(op, "residual", residual, "(B, L, C)", 3)
    rows, matrix = values_of(x), values_of(weight)
    check_ndim(op, "x", rows, "(B, L, K)", 3)
    B, L, C = residual.shape
    K = rows.shape[2]
    check_shape(op, "x", rows, "(B, L, K)", (B, L, K))
    check_weight(op, "weight", matrix, "(C, K)", (C, K))
    check_shape(op, "bias", bias, "(C,)", (C,))
    check_shape(op, "gate", gate, "(B, C)", (B, C))
    check_dtype(op, "weight", matrix, rows.dtype, "x")
    check_operands(op, x, weight)
    check_dtype(op, "gate", gate, residual.dtype, "residual")
    if out is not None:
        check_shape(op, "out", out, "(B, L, C)", (B, L, C))
    result: torch.Tensor = _op(residual, x, weight, bias, gate, out, backend=backend)
    return result
