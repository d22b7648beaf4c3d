"""The specification of adaln, in plain torch. Runs in the dtype it is given; tests give it float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from varsr_engine.kernels.quantized import QuantizedRows, Rows, quantize_rows
from varsr_engine.kernels.spec import Cost


def adaln_reference(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    eps: float = 1e-6,
    out: Rows | None = None,
) -> Rows:
    normalised = F.layer_norm(x, x.shape[-1:], eps=eps)
    scale, shift = scale[:, None], shift[:, None]
    if out is None:
        return normalised * (1 + scale) + shift
    if isinstance(out, QuantizedRows):
        return quantize_rows(torch.addcmul(shift, normalised, 1 + scale), out)
    if out.dtype == x.dtype:
        return torch.addcmul(shift, normalised, 1 + scale, out=out)
    return out.copy_(torch.addcmul(shift, normalised, 1 + scale))


def adaln_cost(B: int, L: int, C: int, in_bytes: int = 4, out_bytes: int = 4) -> Cost:
    return Cost(flops=0, bytes=B * L * C * (in_bytes + out_bytes) + 2 * B * C * 4)
