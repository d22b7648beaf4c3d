"""The first half of the FFN: linear layer and GELU. The second half is `gated_residual`."""

from __future__ import annotations

from typing import overload

import torch

from varsr_engine.dispatch import Op, tensors_in
from varsr_engine.kernels.mlp import cpu_kernel
from varsr_engine.kernels.mlp.reference import mlp_reference
from varsr_engine.kernels.panels import check_weight
from varsr_engine.kernels.quantized import (
    QuantizedRows,
    Rows,
    Weight,
    check_operands,
    check_rows,
    groups,
    unquantized,
    values_of,
)
from varsr_engine.kernels.spec import check_dtype, check_ndim, check_shape
from varsr_engine.kernels.triton_backend import lazily

_op = Op("mlp")
_op.register("torch", mlp_reference)
_op.register("cpu", cpu_kernel.mlp_cpu, unquantized(cpu_kernel.why_not))
_op.register("triton", *lazily("varsr_engine.kernels.mlp.triton_kernel", "mlp_triton", fp8=True))


@overload
def mlp(
    x: Rows,
    weight: Weight,
    bias: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor: ...


@overload
def mlp(
    x: Rows,
    weight: Weight,
    bias: torch.Tensor,
    *,
    out: Rows,
    backend: str | None = None,
) -> Rows: ...


def mlp(
    x: Rows,
    weight: Weight,
    bias: torch.Tensor,
    *,
    out: Rows | None = None,
    backend: str | None = None,
) -> Rows:
    """gelu_tanh(x W^T + b).

    x (B, L, C), weight (F, C) or its panels, bias (F,); result (B, L, F) in x's dtype, in contiguous `out` if given.
    Quantized x and weight: the result is in bias's dtype, or quantized in `out`, of one scale each 128 columns.
    Source: VARSR section 3 (FFN of the VAR transformer).
    """
    rows, matrix = values_of(x), values_of(weight)
    check_ndim("mlp", "x", rows, "(B, L, C)", 3)
    B, L, C = rows.shape
    width, _ = check_weight("mlp", "weight", matrix, "(F, C)", (None, C))
    check_shape("mlp", "bias", bias, "(F,)", (width,))
    check_dtype("mlp", "weight", matrix, rows.dtype, "x")
    quantized = check_operands("mlp", x, weight)
    if isinstance(out, QuantizedRows):
        check_rows("mlp", "out", out, "(B, L, F)", (B, L, width))
        if not quantized or out.scale.shape[-1] != groups(width):
            raise ValueError(f"mlp: quantized out needs quantized x, and {groups(width)} scales a row")
    elif out is not None:
        check_shape("mlp", "out", out, "(B, L, F)", (B, L, width))
        check_dtype("mlp", "out", out, *((bias.dtype, "bias") if quantized else (rows.dtype, "x")))
    if out is not None and not all(t.is_contiguous() for t in tensors_in((out,))):
        raise ValueError("mlp: out must be contiguous")
    result: Rows = _op(x, weight, bias, out, backend=backend)
    return result
