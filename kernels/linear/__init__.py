"""A linear layer, and the product inside every other op: the one place that chooses who multiplies."""

from __future__ import annotations

import torch

from varsr_engine.dispatch import Op, active_backend
from varsr_engine.kernels import cpu_library
from varsr_engine.kernels.linear import cpu_kernel
from varsr_engine.kernels.linear.reference import linear_reference
from varsr_engine.kernels.panels import check_weight
from varsr_engine.kernels.spec import check_dtype, check_ndim, check_shape

_op = Op("linear")
_op.register("torch", linear_reference)
_op.register("cpu", cpu_kernel.linear_cpu, cpu_kernel.why_not)


def prepare_linear(weight: torch.Tensor, parts: int = 1) -> torch.Tensor:
    """The matrix (N, K) in the form that this machine multiplies with: itself, or a copy in panels.

    parts: into how many equal runs of rows callers will cut it (`take_rows`). Where another backend than the CPU's is
    asked for, which does not read panels, it stays a matrix.
    """
    if active_backend() not in (None, "cpu"):
        return weight
    return weight if cpu_kernel.why_not_packed(weight, parts) is not None else cpu_kernel.pack(weight)


def who_multiplies() -> str:
    """Whose products the engine runs on this CPU, and why, as `varsr info` prints it."""
    reason = cpu_kernel.why_not_packed(torch.empty(96, 96))
    if reason is None:
        return f"csrc/cpu/product.cpp ({cpu_library.instructions()}) on weights packed at load"
    return f"torch's library on weights as they lie in the file: {reason}"


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """x W^T + b.

    x (M, K), weight (N, K) or its panels, bias (N,); result (M, N) in x's dtype, written to contiguous `out` if given.
    float32 sums in float32.
    """
    check_ndim("linear", "x", x, "(M, K)", 2)
    M, K = x.shape
    N, _ = check_weight("linear", "weight", weight, "(N, K)", (None, K))
    check_shape("linear", "bias", bias, "(N,)", (N,))
    check_dtype("linear", "weight", weight, x.dtype, "x")
    if out is not None:
        check_shape("linear", "out", out, "(M, N)", (M, N))
        check_dtype("linear", "out", out, x.dtype, "x")
        if not out.is_contiguous():
            raise ValueError("linear: out must be contiguous")
    result: torch.Tensor = _op(x, weight, bias, out, backend=backend)
    return result
