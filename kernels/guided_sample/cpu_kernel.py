"""guided_sample on the CPU: the reference around the head's product with packed weights (csrc/cpu/product.cpp)."""

from __future__ import annotations

import torch

from varsr_engine.kernels.guided_sample.reference import Sampling, draw, guide
from varsr_engine.kernels.linear import cpu_kernel as linear


def why_not(
    cond: torch.Tensor,
    uncond: torch.Tensor | None,
    ratio: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    sampling: Sampling | None = None,
) -> str | None:
    return linear.why_not(cond, weight, bias)


def guided_sample_cpu(
    cond: torch.Tensor,
    uncond: torch.Tensor | None,
    ratio: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    sampling: Sampling | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = guide(cond, uncond, ratio)
    logits = linear.linear_cpu(hidden.flatten(0, 1), weight, bias).unflatten(0, hidden.shape[:2])
    return draw(logits, sampling)
