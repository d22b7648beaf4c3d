"""Adaptive LayerNorm: one (scale, shift) pair a sequence."""

from __future__ import annotations

from typing import overload

import torch

from varsr_engine.dispatch import Op
from varsr_engine.kernels import cuda_backend
from varsr_engine.kernels.adaln import cpu_kernel
from varsr_engine.kernels.adaln.reference import adaln_reference
from varsr_engine.kernels.quantized import QuantizedRows, Rows, check_rows, unquantized
from varsr_engine.kernels.spec import check_dtype, check_ndim, check_shape
from varsr_engine.kernels.triton_backend import lazily

_op = Op("adaln")
_op.register("torch", adaln_reference)
_op.register("cpu", cpu_kernel.adaln_cpu, unquantized(cpu_kernel.why_not))
_op.register("triton", *lazily("varsr_engine.kernels.adaln.triton_kernel", "adaln_triton", fp8=True))
_op.register(
    "cuda",
    *cuda_backend.lazily("varsr_engine.kernels.adaln.cuda_kernel", "adaln_cuda"),
    automatic=cuda_backend.MEASURED,
)


@overload
def adaln(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    eps: float = 1e-6,
    *,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor: ...


@overload
def adaln(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    eps: float = 1e-6,
    *,
    out: Rows,
    backend: str | None = None,
) -> Rows: ...


def adaln(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    eps: float = 1e-6,
    *,
    out: Rows | None = None,
    backend: str | None = None,
) -> Rows:
    """layer_norm(x) * (1 + scale) + shift, without affine weights.

    x (B, L, C), scale and shift (B, C) in x's dtype; result (B, L, C), written to `out` in `out`'s dtype if given,
    or as e4m3 with one scale a row where `out` is QuantizedRows.
    Statistics over C accumulate in float32 at least. Source: VARSR section 3 (adaLN of the VAR transformer).
    """
    check_ndim("adaln", "x", x, "(B, L, C)", 3)
    B, L, C = x.shape
    for name, t in (("scale", scale), ("shift", shift)):
        check_shape("adaln", name, t, "(B, C)", (B, C))
        check_dtype("adaln", name, t, x.dtype, "x")
    if isinstance(out, QuantizedRows):
        check_rows("adaln", "out", out, "(B, L, C)", (B, L, C))
        check_shape("adaln", "out.scale", out.scale, "(B, L, 1)", (B, L, 1))
    elif out is not None:
        check_shape("adaln", "out", out, "(B, L, C)", (B, L, C))
    result: Rows = _op(x, scale, shift, eps, out, backend=backend)
    return result
