"""Arithmetic and least traffic of a call, by the op's own cost model, from its arguments by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from varsr_engine.kernels.adaln.reference import adaln_cost
from varsr_engine.kernels.block_causal_attention.reference import block_causal_attention_cost
from varsr_engine.kernels.conv3x3.reference import conv3x3_cost
from varsr_engine.kernels.gated_residual.reference import gated_residual_cost
from varsr_engine.kernels.groupnorm_silu.reference import groupnorm_silu_cost
from varsr_engine.kernels.guided_sample.reference import guided_sample_cost
from varsr_engine.kernels.linear.reference import linear_cost
from varsr_engine.kernels.mlp.reference import mlp_cost
from varsr_engine.kernels.philox.reference import philox_normal_cost
from varsr_engine.kernels.qkv_norm_rope_cache.reference import qkv_norm_rope_cache_cost
from varsr_engine.kernels.quantized import values_of
from varsr_engine.kernels.refiner_block.reference import refiner_block_cost
from varsr_engine.kernels.refiner_embed.reference import refiner_embed_cost
from varsr_engine.kernels.refiner_update.reference import refiner_update_cost
from varsr_engine.kernels.scale_attention.reference import scale_attention_cost
from varsr_engine.kernels.scale_handoff.reference import scale_handoff_cost
from varsr_engine.kernels.spec import Cost
from varsr_engine.kernels.upsample_conv.reference import upsample_conv_cost

Named = dict[str, Any]


def width(x: Any) -> int:
    """Bytes of an element, of the values of quantized rows."""
    return int(values_of(x).element_size())


def shape(x: Any) -> Any:
    """Its sizes: as many as the op asks for."""
    return values_of(x).shape


def adaln(a: Named) -> Cost:
    B, L, C = shape(a["x"])
    return adaln_cost(B, L, C, width(a["x"]), width(a["x"] if a["out"] is None else a["out"]))


def qkv_norm_rope_cache(a: Named) -> Cost:
    B, L, C = shape(a["x"])
    return qkv_norm_rope_cache_cost(B, L, C, a["num_queries"], width(a["x"]))


def scale_attention(a: Named) -> Cost:
    B, H, L, D = a["q"].shape
    return scale_attention_cost(B, H, L, a["k"].shape[2], D, width(a["q"]))


def block_causal_attention(a: Named) -> Cost:
    B, H, _, D = a["q"].shape
    return block_causal_attention_cost(B, H, a["lengths"], D, width(a["q"]))


def gated_residual(a: Named) -> Cost:
    B, L, K = shape(a["x"])
    return gated_residual_cost(B, L, K, a["residual"].shape[2], width(a["x"]))


def linear(a: Named) -> Cost:
    return linear_cost(a["x"].shape[0], a["weight"].shape[0], a["x"].shape[1], width(a["x"]))


def mlp(a: Named) -> Cost:
    B, L, C = shape(a["x"])
    return mlp_cost(B, L, C, shape(a["weight"])[0], width(a["x"]))


def guided_sample(a: Named) -> Cost:
    B, L, C = shape(a["cond"])
    return guided_sample_cost(B, L, C, a["weight"].shape[0], a["uncond"] is not None, width(a["weight"]))


def scale_handoff(a: Named) -> Cost:
    B, Z, p, _ = a["f_hat"].shape
    c = a["constants"]
    return scale_handoff_cost(B, c.upsample.shape[1], c.downsample.shape[0], p, Z, c.embed_weight.shape[0])


def refiner_block(a: Named) -> Cost:
    R, W = shape(a["x"])
    return refiner_block_cost(R, W, width(a["weights"].in_weight))


def refiner_embed(a: Named) -> Cost:
    M, Z = shape(a["x"])
    return refiner_embed_cost(M, Z, a["cond"].shape[1], width(a["weight"]))


def refiner_update(a: Named) -> Cost:
    _, B, N, W = a["hidden"].shape
    return refiner_update_cost(B, N, W, a["x"].shape[2], width(a["weight"]))


def groupnorm_silu(a: Named) -> Cost:
    B, C, H, W = shape(a["x"])
    return groupnorm_silu_cost(B, C, H, W, width(a["x"]))


def upsample_conv(a: Named) -> Cost:
    B, C_in, H, W = a["x"].shape
    return upsample_conv_cost(B, C_in, a["phases"].shape[2], H, W, width(a["x"]))


def conv3x3(a: Named) -> Cost:
    """A stride skips outputs: the arithmetic is that of the smaller map."""
    B, C_in, H, W = a["x"].shape
    stride = a.get("stride", 1)
    return conv3x3_cost(B, C_in, a["weights"].weight.shape[0], H // stride, W // stride, width(a["x"]))


def philox_normal(a: Named) -> Cost:
    steps = a.get("steps", 1)
    cost = philox_normal_cost(a["seeds"].shape[0], a["positions"].shape[-1], a["count"])
    return cost * (len(steps) if isinstance(steps, range) else 1)


COSTS: dict[str, Callable[[Named], Cost]] = {
    f.__name__: f
    for f in (
        adaln,
        qkv_norm_rope_cache,
        scale_attention,
        block_causal_attention,
        gated_residual,
        linear,
        mlp,
        guided_sample,
        scale_handoff,
        refiner_block,
        refiner_embed,
        refiner_update,
        groupnorm_silu,
        upsample_conv,
        conv3x3,
        philox_normal,
    )
}
