"""One small call of each op, in the order of the dispatcher's arguments: fixed values at shapes like VARSR's.

The residual stream, norms and tables are float32, as in the engine; `dtype` is that of weights and activations.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from varsr_engine.dispatch import OPS
from varsr_engine.engine.weights import resampling_matrix
from varsr_engine.kernels.conv3x3 import prepare_conv3x3
from varsr_engine.kernels.guided_sample import Sampling
from varsr_engine.kernels.linear import prepare_linear
from varsr_engine.kernels.philox.reference import philox_normal_reference
from varsr_engine.kernels.quantized import QuantizedRows, QuantizedWeight, groups, quantize_rows, quantize_weight
from varsr_engine.kernels.refiner_block import RefinerBlockWeights
from varsr_engine.kernels.refiner_update import DenoiseStep
from varsr_engine.kernels.scale_handoff import Handoff
from varsr_engine.kernels.upsample_conv import phase_weights

Arguments = tuple[Any, ...]

B, H, L, S, D, V, Z, W = 2, 2, 36, 100, 64, 256, 16, 128
C, LATENT, SIDE, NEXT_SIDE = H * D, 8, 4, 6
EPS = 1e-6


class Values:
    """Gaussian tensors that depend on the op's name and their order alone."""

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype) -> None:
        self._seed, self._step = torch.tensor([zlib.crc32(name.encode())]), 0
        self.device, self.dtype = device, dtype

    def exact(self, *shape: int, std: float = 1.0) -> torch.Tensor:
        """In float32."""
        self._step += 1
        count = math.prod(shape)
        steps = range(self._step, self._step + 1)
        noise = philox_normal_reference(self._seed, torch.zeros(1, dtype=torch.int64), count, steps, 0)
        return (noise.reshape(shape) * std).to(self.device)

    def compute(self, *shape: int, std: float = 1.0) -> torch.Tensor:
        """In the compute dtype."""
        return self.exact(*shape, std=std).to(self.dtype)

    def weight(self, *shape: int) -> torch.Tensor:
        """A weight matrix or kernel, which keeps the variance."""
        return self.compute(*shape, std=1 / math.sqrt(math.prod(shape[1:])))

    def rows(self, count: int, length: float) -> torch.Tensor:
        """Queries or keys (B, H, count, D), all of one length, in the compute dtype."""
        return (F.normalize(self.exact(B, H, count, D), dim=-1) * length).to(self.dtype)

    def integers(self, *values: int) -> torch.Tensor:
        return torch.tensor(values, device=self.device)


def adaln(v: Values) -> Arguments:
    x, scale, shift = v.exact(B, L, C), v.exact(B, C, std=0.5), v.exact(B, C)
    return x, scale, shift, EPS, torch.empty(B, L, C, device=v.device, dtype=v.dtype)


def qkv_norm_rope_cache(v: Values) -> Arguments:
    angles = v.exact(L, D // 2)
    caches = v.compute(B, H, S, D), v.compute(B, H, S, D)
    weights = prepare_linear(v.weight(3 * C, C), parts=3), v.compute(3 * C), v.exact(H).abs() + 1
    return v.compute(B, L, C), *weights, angles.cos(), angles.sin(), *caches, 19, L


def scale_attention(v: Values) -> Arguments:
    return v.rows(L, length=4.0), v.rows(S, length=1.0), v.compute(B, H, S, D)


def block_causal_attention(v: Values) -> Arguments:
    return v.rows(L, length=4.0), v.rows(L, length=1.0), v.compute(B, H, L, D), (17, 4, 15)


def gated_residual(v: Values) -> Arguments:
    x = v.exact(B, L, C)
    return x, v.compute(B, L, 2 * C), prepare_linear(v.weight(C, 2 * C)), v.compute(C), v.exact(B, C), x


def linear(v: Values) -> Arguments:
    return v.compute(2 * L, C), prepare_linear(v.weight(4 * C, C)), v.compute(4 * C)


def mlp(v: Values) -> Arguments:
    out = torch.empty(B, L, 4 * C, device=v.device, dtype=v.dtype)
    return v.compute(B, L, C), prepare_linear(v.weight(4 * C, C)), v.compute(4 * C), out


def quantized(v: Values, rows: tuple[int, int], scales: int) -> tuple[QuantizedRows, QuantizedWeight]:
    """Quantized x (B, L, K) and weight (N, K) of rows (N, K)."""
    N, K = rows
    x = quantize_rows(v.exact(B, L, K), QuantizedRows.empty(B, L, K, scales, v.device))
    return x, quantize_weight(v.exact(N, K, std=K**-0.5))


def adaln_fp8(v: Values) -> Arguments:
    return *adaln(v)[:-1], QuantizedRows.empty(B, L, C, 1, v.device)


def qkv_norm_rope_cache_fp8(v: Values) -> Arguments:
    return *quantized(v, (3 * C, C), 1), *qkv_norm_rope_cache(v)[2:]


def mlp_fp8(v: Values) -> Arguments:
    return *quantized(v, (4 * C, C), 1), v.compute(4 * C), QuantizedRows.empty(B, L, 4 * C, groups(4 * C), v.device)


def gated_residual_fp8(v: Values) -> Arguments:
    x = v.exact(B, L, C)
    return x, *quantized(v, (C, 2 * C), groups(2 * C)), v.compute(C), v.exact(B, C), x


def greedy_sample(v: Values) -> Arguments:
    return v.exact(B, L, C), v.exact(B, L, C), v.exact(B).abs(), prepare_linear(v.weight(V, C)), v.compute(V), None


def random_sample(v: Values) -> Arguments:
    limits = v.integers(20, 0), torch.tensor([0.75, 0.9], device=v.device), torch.tensor([1.0, 0.8], device=v.device)
    positions = torch.arange(L, device=v.device)
    return *greedy_sample(v)[:-1], Sampling(*limits, v.integers(7, 2**40), positions, 3, 2)


def scale_handoff(v: Values) -> Arguments:
    constants = Handoff(
        upsample=resampling_matrix("bicubic", SIDE, LATENT).contiguous().to(v.device),
        phi_weight=v.exact(Z, Z, 3, 3, std=0.1),
        phi_bias=v.exact(Z),
        phi_ratio=0.5,
        downsample=resampling_matrix("area", LATENT, NEXT_SIDE).contiguous().to(v.device),
        embed_weight=v.exact(C, Z, std=0.25),
        embed_bias=v.exact(C),
    )
    tokens = (torch.arange(B * SIDE * SIDE, device=v.device) * 37 % V).view(B, -1)
    return tokens, v.exact(V, Z), constants, v.exact(B, Z, LATENT, LATENT)


def refiner_block(v: Values) -> Arguments:
    x, shift, scale, gate = (v.exact(2 * L, W, std=std) for std in (1, 1, 0.5, 1))
    layers = (part for _ in range(2) for part in (prepare_linear(v.weight(W, W)), v.compute(W)))
    weights = RefinerBlockWeights(v.exact(W), v.exact(W), *layers)
    return x, shift, scale, gate, weights, EPS, x


def refiner_embed(v: Values) -> Arguments:
    return v.compute(2 * L, W), v.exact(W), v.exact(L, Z), prepare_linear(v.weight(W, Z)), v.compute(W)


def refiner_update(v: Values) -> Arguments:
    hidden, shift, scale = (v.exact(2, B, L, W, std=std) for std in (1, 1, 0.5))
    step = DenoiseStep(500, 1.4, 1.0, 0.3, 0.6, -4.0, -4.5, False)
    x, noise = v.exact(B, L, Z), v.exact(B, L, Z)
    return hidden, shift, scale, v.weight(2 * Z, W), v.compute(2 * Z), x, v.exact(B).abs(), step, noise, EPS


def groupnorm_silu(v: Values) -> Arguments:
    x = v.compute(B, 32, 24, 24).contiguous(memory_format=torch.channels_last)
    return x, v.compute(32), v.compute(32), 8, EPS, True


def upsample_conv(v: Values) -> Arguments:
    x = v.compute(B, 24, 12, 12).contiguous(memory_format=torch.channels_last)
    # In multiples of 2^-8 the folded taps round nothing: both ways of computing have the same exact result.
    weight, bias = v.weight(16, 24, 3, 3).mul(256).round().div(256), v.compute(16)
    return x, phase_weights(weight), bias, prepare_conv3x3(weight, bias)


def conv3x3(v: Values) -> Arguments:
    x, residual = (v.compute(B, n, 12, 12).contiguous(memory_format=torch.channels_last) for n in (24, 16))
    return x, prepare_conv3x3(v.weight(16, 24, 3, 3), v.compute(16)), residual


def philox_normal(v: Values) -> Arguments:
    return v.integers(0, 2**62 + 5), torch.arange(L, device=v.device), Z, range(4, 6), 1


# By op; a name after a dot tells apart several calls of one op.
CASES: dict[str, Callable[[Values], Arguments]] = {
    "adaln": adaln,
    "adaln.fp8": adaln_fp8,
    "qkv_norm_rope_cache": qkv_norm_rope_cache,
    "qkv_norm_rope_cache.fp8": qkv_norm_rope_cache_fp8,
    "scale_attention": scale_attention,
    "block_causal_attention": block_causal_attention,
    "gated_residual": gated_residual,
    "gated_residual.fp8": gated_residual_fp8,
    "linear": linear,
    "mlp": mlp,
    "mlp.fp8": mlp_fp8,
    "guided_sample": greedy_sample,
    "guided_sample.random": random_sample,
    "scale_handoff": scale_handoff,
    "refiner_block": refiner_block,
    "refiner_embed": refiner_embed,
    "refiner_update": refiner_update,
    "groupnorm_silu": groupnorm_silu,
    "upsample_conv": upsample_conv,
    "conv3x3": conv3x3,
    "philox_normal": philox_normal,
}


def arguments(case: str, device: torch.device, dtype: torch.dtype) -> Arguments:
    """The case's arguments, new tensors on each call."""
    return CASES[case](Values(case, device, dtype))


def missing_cases() -> list[str]:
    """Ops without a case here."""
    return sorted(set(OPS) - {name.split(".")[0] for name in CASES})
