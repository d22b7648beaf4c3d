"""Products on the CPU: on packed weights by csrc/cpu/product.cpp, by torch's library on others."""

from __future__ import annotations

from typing import Literal

import torch

from varsr_engine.kernels import cpu_library as cpu
from varsr_engine.kernels.panels import is_packed

# What the library does with a product's sums: `Kind` of csrc/cpu/finish.h.
ACTIVATIONS = {"none": 0, "gelu": 1, "silu": 2}
PLAIN, GATED = 0, 3


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


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: Literal["none", "gelu", "silu"] = "none",
) -> torch.Tensor:
    """out = activation(x W^T + bias) for x (M, K), a weight in either form and contiguous out (M, N)."""
    return _product(x, weight, out, bias, ACTIVATIONS[activation])


def activate(x: torch.Tensor, bias: torch.Tensor, activation: Literal["gelu", "silu"], out: torch.Tensor) -> None:
    """out = activation(x + bias) for contiguous x and out (M, N)."""
    cpu.call("finish", x, bias.contiguous(), ACTIVATIONS[activation], None, None, 0, 1, out, *x.shape)


def gated_product(
    residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    gate: torch.Tensor,
    rows_per: int,
    out: torch.Tensor,
) -> torch.Tensor:
    """out[r] = residual[r] + gate[r // rows_per] * (x W^T + bias)[r]; contiguous residual and out (M, N), or one."""
    gate = cpu.rows_contiguous(gate)
    return _product(x, weight, out, bias, GATED, residual, gate, gate.stride(0), rows_per)


def _product(
    x: torch.Tensor,
    weight: torch.Tensor,
    out: torch.Tensor,
    bias: torch.Tensor | None,
    kind: int,
    residual: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    gate_stride: int = 0,
    rows_per: int = 1,
) -> torch.Tensor:
    (M, K), N = x.shape, out.shape[1]
    finish = (None if bias is None else bias.contiguous(), kind, residual, gate, gate_stride, rows_per, out)
    if is_packed(weight):
        cpu.call("product", x.contiguous(), weight.contiguous(), *finish, M, N, K)
    elif kind == PLAIN:
        torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)
    else:
        out_is_read = residual is not None and residual.data_ptr() == out.data_ptr()
        sums = cpu.scratch("product", M, N) if out_is_read else out
        cpu.call("finish", torch.mm(x, weight.t(), out=sums), *finish, M, N)
    return out


def why_not(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None = None) -> str | None:
    if not is_packed(weight):
        return f"the weight is not packed: {why_not_packed(weight) or 'prepare_linear was not asked'}"
    return cpu.why_not(x, weight, bias, *([] if out is None else [out]))


def linear_cpu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    out = torch.empty(x.shape[0], bias.shape[0]) if out is None else out
    return product(x, weight, out, bias)
