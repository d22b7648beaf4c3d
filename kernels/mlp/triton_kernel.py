"""mlp in Triton: one product, whose epilogue adds the bias and applies GELU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from varsr_engine.kernels.panels import is_packed
from varsr_engine.kernels.triton_product import operands, product, product_tile, programs, tile_of_program


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
):
    row, col = tile_of_program(M, N, BLOCK_M, BLOCK_N)
    acc = product(x, w, M, N, K, row, col, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, TMA)
    offs_m, offs_n = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    bias = tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
    y = gelu_tanh(acc + bias[None, :]).to(out_ptr.dtype.element_ty)
    mask = (offs_m < M)[:, None] & mask_n[None, :]
    tl.store(out_ptr + offs_m.to(tl.int64)[:, None] * N + offs_n[None, :], y, mask=mask)


def why_not(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None = None) -> str | None:
    return "the weight is packed for a CPU" if is_packed(weight) else None


def mlp_triton(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    B, L, K = x.shape
    N = weight.shape[0]
    out = torch.empty(B, L, N, device=x.device, dtype=x.dtype) if out is None else out
    rows, weight = x.contiguous().view(B * L, K), weight.contiguous()
    if out.numel() > 0:
        tile = product_tile(B * L, N, K, x.device, x.element_size(), most_n=256)
        mlp_fwd_kernel[programs(B * L, N, tile)](
            bias_ptr=bias.contiguous(), out_ptr=out, **operands(rows, weight, tile)
        )
    return out
