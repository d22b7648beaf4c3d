"""mlp on the CPU: a product, then bias and GELU in one sweep in place (csrc/cpu/fused.cpp)."""

from __future__ import annotations

from typing import Literal

import torch

from varsr_engine.kernels import cpu_library as cpu
from varsr_engine.kernels.linear.cpu_kernel import product

ACTIVATIONS = {"gelu": 0, "silu": 1}


def why_not(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None = None) -> str | None:
    return cpu.why_not(x, weight, bias, *([] if out is None else [out]), width=bias.shape[0])


def mlp_cpu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    B, L, _ = x.shape
    out = torch.empty(B, L, bias.shape[0]) if out is None else out
    product(x.flatten(0, 1), weight, out.flatten(0, 1))
    bias_activation(out.flatten(0, 1), bias, "gelu")
    return out


def bias_activation(x: torch.Tensor, bias: torch.Tensor, kind: Literal["gelu", "silu"]) -> None:
    """x (R, N) = activation(x + bias), in place."""
    cpu.call("bias_activation", x, bias.contiguous(), *x.shape, ACTIVATIONS[kind])
