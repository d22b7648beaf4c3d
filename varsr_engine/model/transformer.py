"""The next-scale transformer: adaLN blocks over a block-causal sequence (paper section 3; spec sections 3, 4 and 6)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from varsr_engine.config import ModelConfig
from varsr_engine.kernels.adaln import adaln
from varsr_engine.kernels.gated_residual import gated_residual
from varsr_engine.kernels.mlp import mlp
from varsr_engine.kernels.qkv_norm_rope_cache.reference import qkv_norm_rope

# Attention over (q, k, v), each (B, H, L, D), to (B, L, C): block-causal when training, cached when generating.
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def q_scales(scale_mul: torch.Tensor, max_log_scale: float) -> torch.Tensor:
    """(H,) factors on the normalised queries: exp(min(scale_mul, log 100))."""
    return scale_mul.flatten().clamp_max(max_log_scale).exp()


def qkv_bias(q_bias: torch.Tensor, v_bias: torch.Tensor) -> torch.Tensor:
    """(3C,) bias of the joint projection; keys have none."""
    return torch.cat((q_bias, torch.zeros_like(q_bias), v_bias))


class Attention(nn.Module):
    """Multi-head attention with cosine-normalised queries and keys and a learned scale a head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C, H = config.embed_dim, config.num_heads
        self.max_log_scale = config.max_log_scale
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, H, 1, 1), 4.0).log())
        self.q_bias = nn.Parameter(torch.zeros(C))
        self.v_bias = nn.Parameter(torch.zeros(C))
        self.mat_qkv = nn.Linear(C, 3 * C, bias=False)
        self.proj = nn.Linear(C, C)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Attention output (B, L, C) before `proj`, which the block applies with its gate."""
        bias, scale = qkv_bias(self.q_bias, self.v_bias), q_scales(self.scale_mul_1H11, self.max_log_scale)
        return attend(*qkv_norm_rope(x, self.mat_qkv.weight, bias, scale, cos, sin))


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.embed_dim, config.mlp_ratio * config.embed_dim)
        self.fc2 = nn.Linear(config.mlp_ratio * config.embed_dim, config.embed_dim)


class Block(nn.Module):
    """x += g1 Attn(LN(x)(1 + s1) + b1); x += g2 FFN(LN(x)(1 + s2) + b2); (g1, g2, s1, s2, b1, b2) from the class."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C = config.embed_dim
        self.eps = config.norm_eps
        self.attn = Attention(config)
        self.ffn = FeedForward(config)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(C, 6 * C))

    def forward(
        self, x: torch.Tensor, cond: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        gate1, gate2, scale1, scale2, shift1, shift2 = self.ada_lin(cond).to(x.dtype).chunk(6, dim=-1)
        attended = self.attn(adaln(x, scale1, shift1, self.eps), cos, sin, attend)
        dtype = self.attn.proj.weight.dtype  # ops want one dtype; under autocast the products choose theirs again
        x = gated_residual(x, attended.to(dtype), self.attn.proj.weight, self.attn.proj.bias, gate1)
        hidden = mlp(adaln(x, scale2, shift2, self.eps), self.ffn.fc1.weight, self.ffn.fc1.bias)
        return gated_residual(x, hidden.to(dtype), self.ffn.fc2.weight, self.ffn.fc2.bias, gate2)


class HeadNorm(nn.Module):
    """adaLN before the head; its linear gives the scale first, then the shift."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(config.embed_dim, 2 * config.embed_dim))

    def forward(self, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        scale, shift = self.ada_lin(cond).to(x.dtype).chunk(2, dim=-1)
        return adaln(x, scale, shift, self.eps)


def cached_attend(cache: list[tuple[torch.Tensor, torch.Tensor]]) -> Attend:
    """Attention over every key so far; `cache` is one block's list of (k, v), which this call extends."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        cache.append((k, v))
        keys, values = (torch.cat(part, dim=2) for part in zip(*cache, strict=True))
        return F.scaled_dot_product_attention(q, keys, values, scale=1.0).transpose(1, 2).flatten(2)

    return attend
