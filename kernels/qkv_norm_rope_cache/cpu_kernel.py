"""qkv_norm_rope_cache on the CPU: three products, then bias, norm, rotation and layout in one sweep each."""

from __future__ import annotations

import torch

from varsr_engine.kernels import cpu_library as cpu
from varsr_engine.kernels.linear.cpu_kernel import product
from varsr_engine.kernels.panels import take_rows


def why_not(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    q_scale: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: int,
    num_queries: int,
    out: torch.Tensor | None = None,
) -> str | None:
    D = k_cache.shape[3]
    targets = {"k_cache": k_cache, "v_cache": v_cache} | ({} if out is None else {"out": out})
    for name, target in targets.items():
        if target.stride()[2:] != (D, 1):
            return f"the rows of {name} are not contiguous"
    return cpu.why_not(x, weight, bias, q_scale, cos, sin, *targets.values(), width=D)


def qkv_norm_rope_cache_cpu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    q_scale: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: int,
    num_queries: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    B, L, C = x.shape
    H, D = k_cache.shape[1], k_cache.shape[3]
    first = L - num_queries
    cos, sin, q_scale = cos.contiguous(), sin.contiguous(), q_scale.contiguous()
    bias, flat = bias.contiguous(), x.reshape(B * L, C)
    q = torch.empty(B, H, num_queries, D) if out is None else out
    asking = flat if num_queries == L else x[:, first:].reshape(B * num_queries, C)
    new_k, new_v = k_cache[:, :, position:], v_cache[:, :, position:]
    projected = cpu.scratch("product", B * L, C)
    product(flat, take_rows(weight, C, 2 * C), projected)
    split_heads(projected, bias[C : 2 * C], None, cos, sin, new_k, B)
    product(flat, take_rows(weight, 2 * C, 3 * C), projected)
    split_heads(projected, bias[2 * C :], None, None, None, new_v, B)
    projected = projected[: B * num_queries]
    product(asking, take_rows(weight, 0, C), projected)
    split_heads(projected, bias[:C], q_scale, cos[first:], sin[first:], q, B)
    return q


def split_heads(
    source: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    target: torch.Tensor,
    batch: int,
) -> None:
    """target[b, h, l] = source[b, l, h] + bias[h]; with cos and sin also normalised to length scale[h] and rotated."""
    H, D = target.shape[1], target.shape[3]
    length = source.shape[0] // max(batch, 1)
    cpu.call("split_heads", source, bias, scale, cos, sin, target, batch, length, H, D, *target.stride()[:2])
