"""guided_sample in CUDA C++: guidance, a library's product, then bias and argmax in one sweep over the logits.

Only the argmax: a draw is Triton's. The kernels are in csrc/cuda/guided_sample.cu.
"""

from __future__ import annotations

import torch

from varsr_engine.kernels.cuda_backend import MOST_IN_GRID, VECTOR_BYTES, aligned, dtype_code, launch
from varsr_engine.kernels.guided_sample.reference import Sampling
from varsr_engine.kernels.panels import is_packed


def why_not(
    cond: torch.Tensor,
    uncond: torch.Tensor | None,
    ratio: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    sampling: Sampling | None = None,
) -> str | None:
    if sampling is not None:
        return "it takes the argmax only, and this call samples"
    if is_packed(weight):
        return "the weight is packed for a CPU"
    if bias.dtype != weight.dtype:
        return f"bias is {bias.dtype}, weight is {weight.dtype}"
    for name, t in (("cond", cond), ("uncond", uncond), ("ratio", ratio)):
        if t is not None and t.dtype != torch.float32:
            return f"{name} is {t.dtype}, not torch.float32"
    vector = VECTOR_BYTES // weight.element_size()
    if uncond is not None and cond.shape[-1] % vector != 0:
        return f"C is {cond.shape[-1]}, not a multiple of {vector}"
    if cond.shape[0] > MOST_IN_GRID:
        return f"B is {cond.shape[0]}, more than {MOST_IN_GRID}"
    return None


def guide(cond: torch.Tensor, uncond: torch.Tensor | None, ratio: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(1 + t) cond - t uncond (B, L, C), in the head's dtype."""
    if uncond is None:
        return cond.to(dtype)
    B, L, C = cond.shape
    out = torch.empty(B, L, C, device=cond.device, dtype=dtype)
    launch(
        "guidance",
        cond.device,
        *(aligned(cond), aligned(uncond), ratio.contiguous(), out),
        *(B, L * C, dtype_code(dtype)),
    )
    return out


def product_in_float32(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x W^T (M, V), not rounded to the weight's dtype: close logits stay apart."""
    if weight.dtype == torch.float32 or not x.is_cuda:
        return torch.mm(x.float(), weight.float().t())
    return torch.mm(x, weight.t(), out_dtype=torch.float32)


def guided_sample_cuda(
    cond: torch.Tensor,
    uncond: torch.Tensor | None,
    ratio: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    sampling: Sampling | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    B, L, C = cond.shape
    V = weight.shape[0]
    tokens = torch.empty(B, L, device=cond.device, dtype=torch.int64)
    if B * L * V == 0:
        return tokens, torch.empty(B, L, V, device=cond.device, dtype=torch.float32)
    logits = product_in_float32(guide(cond, uncond, ratio, weight.dtype).reshape(B * L, C), weight)
    launch("bias_argmax", cond.device, logits, aligned(bias), tokens, B * L, V, dtype_code(bias.dtype))
    return tokens, logits.view(B, L, V)
