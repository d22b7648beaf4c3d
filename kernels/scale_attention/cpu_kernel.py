"""scale_attention through csrc/cpu/scale_attention.cpp."""

from __future__ import annotations

import torch

from varsr_engine.kernels import cpu_library as cpu

MAX_HEAD_DIM = 128


def why_not(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
) -> str | None:
    if q.shape[2] == 1:
        return "one query: torch's dot products add up more exactly"
    if q.shape[3] > MAX_HEAD_DIM:
        return f"a head dimension of {q.shape[3]} exceeds {MAX_HEAD_DIM}"
    if out is not None and not out.is_contiguous():
        return "out is not contiguous"
    for name, t in (("q", q), ("k", k), ("v", v)):
        if t.stride(3) != 1:
            return f"the last dimension of {name} is not contiguous"
    return cpu.why_not(q, k, v, width=q.shape[3])


def scale_attention_cpu(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
) -> torch.Tensor:
    B, H, L, D = q.shape
    out = torch.empty(B, L, H * D) if out is None else out
    strides = torch.tensor([stride for t in (q, k, v) for stride in t.stride()[:3]])
    cpu.call("scale_attention", q, k, v, out, B, H, L, k.shape[2], D, strides)
    return out
