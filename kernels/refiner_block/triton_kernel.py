"""refiner_block in Triton: the modulated norm of each row, then two products, whose epilogues do the rest."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from varsr_engine.kernels.panels import is_packed
from varsr_engine.kernels.refiner_block.reference import RefinerBlockWeights
from varsr_engine.kernels.triton_product import operands, product, product_tile, programs, tile_of_program

WIDEST = 8192  # a row must fit in a program's registers


@triton.jit
def modulated_norm_kernel(
    x_ptr,  # (R, W)
    weight_ptr,  # (W,)
    bias_ptr,
    scale_ptr,  # (R, W), rows stride_scale apart
    shift_ptr,
    out_ptr,  # (R, W)
    stride_scale,
    stride_shift,
    eps,
    W: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offs_w = tl.arange(0, BLOCK_W)
    mask = offs_w < W
    x = tl.load(x_ptr + row * W + offs_w, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + row * stride_scale + offs_w, mask=mask, other=0.0).to(tl.float32)
    shift = tl.load(shift_ptr + row * stride_shift + offs_w, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + offs_w, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + offs_w, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / W
    centred = tl.where(mask, x - mean, 0.0)  # masked lanes must not enter the variance
    rstd = tl.rsqrt(tl.sum(centred * centred, axis=0) / W + eps)
    y = (centred * rstd * weight + bias) * (1.0 + scale) + shift
    tl.store(out_ptr + row * W + offs_w, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M"])
def linear_silu_kernel(
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
    """out = silu(x w^T + bias)."""
    row, col = tile_of_program(M, N, BLOCK_M, BLOCK_N)
    acc = product(x, w, M, N, K, row, col, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, TMA)
    offs_m, offs_n = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    h = acc + tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    mask = (offs_m < M)[:, None] & mask_n[None, :]
    y = (h * tl.sigmoid(h)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + offs_m.to(tl.int64)[:, None] * N + offs_n[None, :], y, mask=mask)


@triton.jit(do_not_specialize=["M"])
def linear_gated_add_kernel(
    x,  # (M, K)
    w,  # (N, K)
    bias_ptr,  # (N,)
    gate_ptr,  # (M, N), rows stride_gate apart
    residual_ptr,  # (M, N)
    out_ptr,  # (M, N), which may be the residual
    stride_gate,
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
    TMA: tl.constexpr,
):
    """out = residual + gate * (x w^T + bias)."""
    row, col = tile_of_program(M, N, BLOCK_M, BLOCK_N)
    acc = product(x, w, M, N, K, row, col, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, TMA)
    offs_m, offs_n = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    update = acc + tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    mask = (offs_m < M)[:, None] & mask_n[None, :]
    rows = offs_m.to(tl.int64)[:, None]
    gate = tl.load(gate_ptr + rows * stride_gate + offs_n[None, :], mask=mask, other=0.0).to(tl.float32)
    offs = rows * N + offs_n[None, :]
    y = tl.load(residual_ptr + offs, mask=mask, other=0.0).to(tl.float32) + gate * update
    tl.store(out_ptr + offs, y.to(out_ptr.dtype.element_ty), mask=mask)


def why_not(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    gate: torch.Tensor,
    weights: RefinerBlockWeights,
    eps: float = 1e-6,
    out: torch.Tensor | None = None,
) -> str | None:
    if is_packed(weights.in_weight) or is_packed(weights.out_weight):
        return "a weight is packed for a CPU"
    if x.shape[1] > WIDEST:
        return f"W is {x.shape[1]}, more than {WIDEST}"
    if out is not None and not out.is_contiguous():
        return "out is not contiguous"
    return None


def rows_of(t: torch.Tensor) -> torch.Tensor:
    """The tensor itself where a row is contiguous, as in a slice of a wider matrix; else a copy."""
    return t if t.stride(-1) == 1 else t.contiguous()


def refiner_block_triton(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    gate: torch.Tensor,
    weights: RefinerBlockWeights,
    eps: float = 1e-6,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    (R, W), w = x.shape, weights
    x, shift, scale, gate = x.contiguous(), rows_of(shift), rows_of(scale), rows_of(gate)
    out = torch.empty_like(x) if out is None else out
    if out.numel() == 0:
        return out
    in_weight, out_weight = w.in_weight.contiguous(), w.out_weight.contiguous()
    normalised = torch.empty(R, W, device=x.device, dtype=in_weight.dtype)
    modulated_norm_kernel[(R,)](
        x,
        w.norm_weight.contiguous(),
        w.norm_bias.contiguous(),
        scale,
        shift,
        normalised,
        scale.stride(0),
        shift.stride(0),
        eps,
        W=W,
        BLOCK_W=triton.next_power_of_2(W),
        num_warps=4 if W > 512 else 1,
    )
    hidden = torch.empty(R, W, device=x.device, dtype=out_weight.dtype)
    tile = product_tile(R, W, W, x.device, in_weight.element_size(), most_n=256)
    linear_silu_kernel[programs(R, W, tile)](
        bias_ptr=w.in_bias.contiguous(), out_ptr=hidden, **operands(normalised, in_weight, tile)
    )
    # The gate and the residual of a wider tile would not fit in the registers beside it.
    tile = product_tile(R, W, W, x.device, out_weight.element_size(), most_n=128)
    linear_gated_add_kernel[programs(R, W, tile)](
        bias_ptr=w.out_bias.contiguous(),
        gate_ptr=gate,
        residual_ptr=x,
        out_ptr=out,
        stride_gate=gate.stride(0),
        **operands(hidden, out_weight, tile),
    )
    return out
