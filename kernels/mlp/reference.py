"""The specification of mlp, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from varsr_engine.kernels.quantized import QuantizedRows, Rows, Weight, plain_operands, quantize_rows
from varsr_engine.kernels.spec import Cost


def mlp_reference(x: Rows, weight: Weight, bias: torch.Tensor, out: Rows | None = None) -> Rows:
    matrix, factor, addend = plain_operands(x, weight, bias)
    if out is None or isinstance(x, QuantizedRows):
        result = F.gelu(F.linear(matrix, factor, addend), approximate="tanh")
        if isinstance(out, QuantizedRows):
            return quantize_rows(result, out)
        return result.to(bias.dtype) if out is None else out.copy_(result)
    assert isinstance(out, torch.Tensor)
    torch.addmm(addend, matrix.flatten(0, 1), factor.t(), out=out.flatten(0, 1))
    return torch.ops.aten.gelu.out(out, approximate="tanh", out=out)


def mlp_cost(B: int, L: int, C: int, F_: int, element: int = 4) -> Cost:
    return Cost(flops=2 * B * L * C * F_, bytes=element * (B * L * (C + F_) + C * F_))
