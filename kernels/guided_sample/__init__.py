"""From the last hidden states of a scale to its tokens: guidance, head, argmax or sampling."""

from __future__ import annotations

import torch

from varsr_engine.dispatch import Op
from varsr_engine.kernels import cuda_backend
from varsr_engine.kernels.guided_sample import cpu_kernel
from varsr_engine.kernels.guided_sample.reference import Sampling as Sampling
from varsr_engine.kernels.guided_sample.reference import guided_sample_reference
from varsr_engine.kernels.panels import check_weight
from varsr_engine.kernels.spec import check_ndim, check_shape
from varsr_engine.kernels.triton_backend import lazily

_op = Op("guided_sample")
_op.register("torch", guided_sample_reference)
_op.register("cpu", cpu_kernel.guided_sample_cpu, cpu_kernel.why_not)
_op.register("triton", *lazily("varsr_engine.kernels.guided_sample.triton_kernel", "guided_sample_triton"))
_op.register(
    "cuda",
    *cuda_backend.lazily("varsr_engine.kernels.guided_sample.cuda_kernel", "guided_sample_cuda"),
    automatic=cuda_backend.MEASURED,
)


def guided_sample(
    cond: torch.Tensor,
    uncond: torch.Tensor | None,
    ratio: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    sampling: Sampling | None = None,
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """tokens ~ softmax(filter(logits)), logits = ((1 + t) cond - t uncond) W^T + b; argmax where sampling is None.

    Guidance commutes with the linear head, so it is taken before it, on half the rows.
    cond and uncond (B, L, C) float32 (uncond None: t = 0), ratio t (B,), weight (V, C) or its panels, bias (V,).
    Returns tokens (B, L) int64 (the lowest index on ties) and the guided logits (B, L, V) in float32.
    Sampling is by Gumbel noise from Philox: independent of the batch. Source: VARSR section 3.3, spec section 6.
    """
    op = "guided_sample"
    check_ndim(op, "cond", cond, "(B, L, C)", 3)
    B, L, C = cond.shape
    V, _ = check_weight(op, "weight", weight, "(V, C)", (None, C))
    if uncond is not None:
        check_shape(op, "uncond", uncond, "(B, L, C)", (B, L, C))
    check_shape(op, "ratio", ratio, "(B,)", (B,))
    check_shape(op, "bias", bias, "(V,)", (V,))
    if sampling is not None:
        for name in ("top_k", "top_p", "temperature", "seeds"):
            check_shape(op, name, getattr(sampling, name), "(B,)", (B,))
        if sampling.positions.ndim == 2:
            check_shape(op, "positions", sampling.positions, "(B, L)", (B, L))
        else:
            check_shape(op, "positions", sampling.positions, "(L,) or (B, L)", (L,))
    result: tuple[torch.Tensor, torch.Tensor] = _op(cond, uncond, ratio, weight, bias, sampling, backend=backend)
    return result
