"""The first half of the FFN: linear layer and GELU. The second half is `gated_residual`."""

from __future__ import annotations

import torch

from varsr_engine.dispatch import Op
from varsr_engine.kernels.mlp import cpu_kernel
from varsr_engine.kernels.mlp.reference import mlp_reference
from varsr_engine.kernels.panels import check_weight
from varsr_engine.kernels.spec import check_dtype, check_ndim, check_shape
from varsr_engine.kernels.triton_backend import lazily

_op = Op("mlp")
_op.register("torch", mlp_reference)
_op.register("cpu", cpu_kernel.mlp_cpu, cpu_kernel.why_not)
_op.register("triton", *lazily("varsr_engine.kernels.mlp.triton_kernel", "mlp_triton"))


def mlp(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """gelu_tanh(x W^T + b).

    x (B, L, C), weight (F, C) or its panels, bias (F,); result (B, L, F) in x's dtype, in contiguous `out` if given.
    Source: VARSR section 3 (FFN of the VAR transformer).
    """
    check_ndim("mlp", "x", x, "(B, L, C)", 3)
    B, L, C = x.shape
    width, _ = check_weight("mlp", "weight", weight, "(F, C)", (None, C))
    check_shape("mlp", "bias", bias, "(F,)", (width,))
    check_dtype("mlp", "weight", weight, x.dtype, "x")
    if out is not None:
        check_shape("mlp", "out", out, "(B, L, F)", (B, L, width))
        check_dtype("mlp", "out", out, x.dtype, "x")
        if not out.is_contiguous():
            raise ValueError("mlp: out must be contiguous")
    result: torch.Tensor = _op(x, weight, bias, out, backend=backend)
    return result
