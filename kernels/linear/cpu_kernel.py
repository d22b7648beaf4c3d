"""Products on the CPU: on packed weights by csrc/cpu/product.cpp, by torch's library on others."""

from __future__ import annotations

import torch

from varsr_engine.kernels import cpu_library as cpu
from varsr_engine.kernels.panels import is_packed, matrix_shape


def why_not_packed(weight: torch.Tensor, parts: int = 1) -> str | None:
    """Why products with this matrix are torch's, or None where they are the kernel's, on panels."""
    reason = cpu.why_not(weight)
    if reason is not None:
        return reason
    (N, K), P = weight.shape, cpu.call("panel_width")
    if N % (parts * P) != 0 or K % P != 0:
        return f"a weight of {N // parts} x {K} is not made of panels of {P} rows and multiples of {P} columns"
    return None


def pack(weight: torch.Tensor) -> torch.Tensor:
    """The panels (N / P, K, P) of a matrix (N, K)."""
    (N, K), P = weight.shape, cpu.call("panel_width")
    panels = torch.empty(N // P, K, P)
    cpu.call("pack_panels", weight.contiguous(), panels, N, K)
    return panels


def product(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """out = x W^T + bias for x (M, K), a weight in either form and contiguous out (M, N)."""
    if is_packed(weight):
        N, K = matrix_shape(weight)
        bias = None if bias is None else bias.contiguous()
        cpu.call("product", x.contiguous(), weight.contiguous(), bias, out, x.shape[0], N, K)
        return out
    return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)


def why_not(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None = None) -> str | None:
    if not is_packed(weight):
        return f"the weight is not packed: {why_not_packed(weight) or 'prepare_linear was not asked'}"
    return cpu.why_not(x, weight, bias, *([] if out is None else [out]))


def linear_cpu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    out = torch.empty(x.shape[0], bias.shape[0]) if out is None else out
    return product(x, weight, out, bias)
