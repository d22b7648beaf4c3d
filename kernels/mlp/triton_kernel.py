"""mlp in Triton: one product, whose epilogue adds the bias, applies GELU and, for FP8, quantizes its tile."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from varsr_engine.kernels.panels import is_packed
from varsr_engine.kernels.quantized import GROUP, QuantizedRows, Rows, Weight, values_of
from varsr_engine.kernels.triton_product import (
    matrices,
    operands,
    product,
    product_tile,
    programs,
    quantize,
    tile_of_program,
)


@triton.jit
def gelu_tanh(x):
    """x / 2 (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit(do_not_specialize=["M"])
def mlp_fwd_kernel(
    x,  # (M, K)
    w,  # (N, K)
    bias_ptr,  # (N,)
    out_ptr,  # (M, N)
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
    TMA: tl.constexpr,
    x_scale=None,  # (M, 1 or K / GROUP) float32 where x and w are e4m3
    w_scale=None,  # (N,) float32
    GROUP: tl.constexpr = 0,
    out_scale_ptr=None,  # (M, N / BLOCK_N) float32 where out is e4m3
    QUANTIZED: tl.constexpr = False,
):
    row, col = tile_of_program(M, N, BLOCK_M, BLOCK_N)
    acc = product(
        x, w, M, N, K, row, col, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, TMA, x_scale=x_scale, w_scale=w_scale, GROUP=GROUP
    )
    offs_m, offs_n = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    bias = tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    y = gelu_tanh(acc + bias[None, :])
    if QUANTIZED:
        y, scale = quantize(y)
        tl.store(out_scale_ptr + offs_m * tl.cdiv(N, BLOCK_N) + col // BLOCK_N, scale, mask=offs_m < M)
    else:
        y = y.to(out_ptr.dtype.element_ty)
    mask = (offs_m < M)[:, None] & mask_n[None, :]
    tl.store(out_ptr + offs_m.to(tl.int64)[:, None] * N + offs_n[None, :], y, mask=mask)


def why_not(x: Rows, weight: Weight, bias: torch.Tensor, out: Rows | None = None) -> str | None:
    return "the weight is packed for a CPU" if is_packed(values_of(weight)) else None


def mlp_triton(x: Rows, weight: Weight, bias: torch.Tensor, out: Rows | None = None) -> Rows:
    (B, L, K), N, device = values_of(x).shape, values_of(weight).shape[0], bias.device
    out = torch.empty(B, L, N, device=device, dtype=bias.dtype) if out is None else out
    quantization: dict[str, Any] = {}
    if isinstance(out, QuantizedRows):
        quantization = {"out_scale_ptr": out.scale, "QUANTIZED": True}
    if values_of(out).numel() > 0:
        rows, matrix = matrices(x, weight)
        # A program that quantizes sees all columns that share a scale.
        widths = {"least_n": GROUP, "most_n": GROUP} if quantization else {"most_n": 256}
        tile = product_tile(B * L, N, K, device, values_of(x).element_size(), **widths)
        mlp_fwd_kernel[programs(B * L, N, tile)](
            bias_ptr=bias.contiguous(), out_ptr=values_of(out), **quantization, **operands(rows, matrix, tile)
        )
    return out
