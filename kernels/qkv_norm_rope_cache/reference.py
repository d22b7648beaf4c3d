"""The specification of qkv_norm_rope_cache, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from varsr_engine.kernels.quantized import Rows, Weight, plain_operands
from varsr_engine.kernels.spec import Cost

NORM_FLOOR = 1e-12


def rotate_pairs(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs (x[2j], x[2j+1]) of the last dimension by the angles given as (L, D/2) cosines and sines."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def qkv_norm_rope(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    q_scale: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values (B, H, L, D) of one block, differentiable: what the training forward uses."""
    H, D = q_scale.shape[0], 2 * cos.shape[-1]
    qkv = F.linear(x, weight, bias).unflatten(-1, (3, H, D))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (3, B, H, L, D)
    q = F.normalize(q, dim=-1, eps=NORM_FLOOR) * q_scale[:, None, None]
    k = F.normalize(k, dim=-1, eps=NORM_FLOOR)
    q, k = rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)
    return q.to(v.dtype), k.to(v.dtype), v  # under autocast the norms, and what follows them, are float32


def qkv_norm_rope_cache_reference(
    x: Rows,
    weight: Weight,
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
    tokens, matrix, addend = plain_operands(x, weight, bias)
    L = tokens.shape[1]
    H, D = k_cache.shape[1], k_cache.shape[3]
    rows = slice(position, position + L)
    rotation = torch.complex(cos, sin)

    def project(x: torch.Tensor, index: int) -> torch.Tensor:
        """One of q, k, v as (B, H, L, D). Three products, not one: no buffer of three widths to write and reread."""
        part = slice(index * H * D, (index + 1) * H * D)
        return F.linear(x, matrix[part], addend[part]).unflatten(-1, (H, D)).transpose(1, 2)

    def rotate(part: torch.Tensor, length: torch.Tensor | float, rotation: torch.Tensor) -> torch.Tensor:
        part = part.float() if part.dtype in (torch.float16, torch.bfloat16) else part
        norm = torch.linalg.vector_norm(part, dim=-1, keepdim=True).clamp_min(NORM_FLOOR)
        pairs = torch.view_as_complex(part.mul_(length / norm).unflatten(-1, (D // 2, 2)))
        return torch.view_as_real(pairs * rotation).flatten(-2)

    k_cache[:, :, rows] = rotate(project(tokens, 1), 1.0, rotation)
    v_cache[:, :, rows] = project(tokens, 2)
    first = L - num_queries
    q = rotate(project(tokens[:, first:], 0), q_scale[:, None, None], rotation[first:]).to(k_cache.dtype)
    return q if out is None else out.copy_(q)


def qkv_norm_rope_cache_cost(B: int, L: int, C: int, num_queries: int, element: int = 4) -> Cost:
    rows = B * (2 * L + num_queries)
    return Cost(flops=2 * rows * C * C, bytes=element * (B * L * C + rows * C + 3 * C * C))
