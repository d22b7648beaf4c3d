"""From one scale's tokens to the next scale's inputs, through the accumulated feature map."""

from __future__ import annotations

import torch

from varsr_engine.dispatch import Op
from varsr_engine.kernels import cuda_backend
from varsr_engine.kernels.scale_handoff.reference import Handoff as Handoff
from varsr_engine.kernels.scale_handoff.reference import scale_handoff_reference
from varsr_engine.kernels.spec import check_ndim, check_shape
from varsr_engine.kernels.triton_backend import lazily

_op = Op("scale_handoff")
_op.register("torch", scale_handoff_reference)
_op.register("triton", *lazily("varsr_engine.kernels.scale_handoff.triton_kernel", "scale_handoff_triton"))
_op.register(
    "cuda",
    *cuda_backend.lazily("varsr_engine.kernels.scale_handoff.cuda_kernel", "scale_handoff_cuda"),
    automatic=cuda_backend.MEASURED,
)


def scale_handoff(
    tokens: torch.Tensor,
    codebook: torch.Tensor,
    constants: Handoff,
    f_hat: torch.Tensor,
    *,
    copies: int = 1,
    backend: str | None = None,
) -> torch.Tensor:
    """h = up(codebook[tokens]); f_hat += (1-r) h + r phi(h), in place; x = area(f_hat) W^T + b.

    tokens (B, p_k^2) int64, codebook (V, Z), f_hat (B, Z, p, p) float32, result (copies * B, p_{k+1}^2, C) float32: the
    next scale's inputs, `copies` times behind each other for branches that start from the same.
    Source: VARSR section 3.1, spec section 7.
    """
    op = "scale_handoff"
    check_ndim(op, "tokens", tokens, "(B, p_k^2)", 2)
    check_ndim(op, "f_hat", f_hat, "(B, Z, p, p)", 4)
    p, side = constants.upsample.shape
    B, Z = tokens.shape[0], codebook.shape[1]
    check_shape(op, "tokens", tokens, "(B, p_k^2)", (B, side * side))
    check_shape(op, "f_hat", f_hat, "(B, Z, p, p)", (B, Z, p, p))
    check_shape(op, "phi_weight", constants.phi_weight, "(Z, Z, 3, 3)", (Z, Z, 3, 3))
    check_shape(op, "downsample", constants.downsample, "(p_{k+1}, p)", (constants.downsample.shape[0], p))
    result: torch.Tensor = _op(tokens, codebook, constants, f_hat, copies, backend=backend)
    return result
