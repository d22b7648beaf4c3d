"""GroupNorm followed by SiLU, the autoencoder's activation."""

from __future__ import annotations

import torch

from varsr_engine.dispatch import Op
from varsr_engine.kernels import cuda_backend
from varsr_engine.kernels.groupnorm_silu import cpu_kernel
from varsr_engine.kernels.groupnorm_silu.reference import groupnorm_silu_reference
from varsr_engine.kernels.spec import check_dtype, check_ndim, check_shape
from varsr_engine.kernels.triton_backend import lazily

_op = Op("groupnorm_silu")
_op.register("torch", groupnorm_silu_reference)
_op.register("cpu", cpu_kernel.groupnorm_silu_cpu, cpu_kernel.why_not)
_op.register("triton", *lazily("varsr_engine.kernels.groupnorm_silu.triton_kernel", "groupnorm_silu_triton"))
_op.register(
    "cuda",
    *cuda_backend.lazily("varsr_engine.kernels.groupnorm_silu.cuda_kernel", "groupnorm_silu_cuda"),
    automatic=cuda_backend.MEASURED,
)


def groupnorm_silu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float = 1e-6,
    *,
    silu: bool = True,
    out: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """silu(group_norm(x)), or group_norm(x) alone with silu=False.

    x (B, C, H, W), channels-last in the engine; weight and bias (C,); the result has x's dtype and memory format,
    and is written to `out` if given, which may be x.
    Statistics accumulate in float32 at least. Source: VARSR section 3.1 (the VQ-f16 autoencoder).
    """
    check_ndim("groupnorm_silu", "x", x, "(B, C, H, W)", 4)
    C = x.shape[1]
    check_shape("groupnorm_silu", "weight", weight, "(C,)", (C,))
    check_shape("groupnorm_silu", "bias", bias, "(C,)", (C,))
    if C % groups != 0:
        raise ValueError(f"groupnorm_silu: groups must divide C = {C}, got {groups}")
    if out is not None:
        check_shape("groupnorm_silu", "out", out, "(B, C, H, W)", tuple(x.shape))
        check_dtype("groupnorm_silu", "out", out, x.dtype, "x")
    result: torch.Tensor = _op(x, weight, bias, groups, eps, silu, out, backend=backend)
    return result
