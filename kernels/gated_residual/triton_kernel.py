"""gated_residual in Triton: one product whose epilogue adds bias, gate and residual, or parts of it and their sum.

A product of few rows and many terms (the second half of the FFN) has too few tiles to stream its weight at the memory's
speed. Its terms are split among programs, the last of which adds up what they found (`triton_split`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from varsr_engine.kernels.panels import is_packed
from varsr_engine.kernels.quantized import Rows, Weight, values_of
from varsr_engine.kernels.triton_product import (
    MULTIPROCESSORS,
    Tile,
    matrices,
    operands,
    product,
    product_tile,
    programs,
    tile_of_program,
)
from varsr_engine.kernels.triton_split import arrives_last, counters

DEEP = 4096  # terms from which a product is split
MOST_PARTS = 4
FEW_ROWS, MANY_ROWS = 16, 512  # fewer: narrow tiles read W once, X for almost nothing. More: enough tiles, large parts


@triton.jit
def gated_add(
    acc,
    bias_ptr,
    gate_ptr,
    residual_ptr,
    out_ptr,
    stride_gate,
    L,
    M,
    N,
    row,
    col,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """out = residual + gate * (acc + bias), in the tile at (row, col)."""
    offs_m, offs_n = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    acc += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    # One gate vector at a time, for the rows of its sequence: a tile of gates would not fit in the registers.
    for b in range(row // L, (tl.minimum(row + BLOCK_M, M) - 1) // L + 1):
        gate = tl.load(gate_ptr + tl.cast(b, tl.int64) * stride_gate + offs_n, mask=mask_n, other=0.0).to(tl.float32)
        acc = tl.where((offs_m // L == b)[:, None], acc * gate[None, :], acc)
    offs = offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
    mask = (offs_m < M)[:, None] & mask_n[None, :]
    y = tl.load(residual_ptr + offs, mask=mask, other=0.0).to(tl.float32) + acc
    tl.store(out_ptr + offs, y.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M", "L"])
def gated_residual_fwd_kernel(
    x,  # (M, K)
    w,  # (N, K)
    bias_ptr,  # (N,)
    gate_ptr,  # (M / L, N), rows stride_gate apart
    residual_ptr,  # (M, N)
    out_ptr,  # (M, N), may be residual
    parts_ptr,  # (PARTS, M, N) float32 if PARTS > 1
    counter_ptr,  # a counter a tile if PARTS > 1
    length,  # terms of a part, a multiple of 2 BLOCK_K
    stride_gate,
    L,
    M,
    N,
    K,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
    SWAP: tl.constexpr,
    TMA: tl.constexpr,
    x_scale=None,  # (M, 1 or K / GROUP) float32 where x and w are e4m3
    w_scale=None,  # (N,) float32
    GROUP: tl.constexpr = 0,
):
    row, col = tile_of_program(M, N, BLOCK_M, BLOCK_N)
    if PARTS == 1:
        acc = product(
            x, w, M, N, K, row, col, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, TMA, x_scale=x_scale, w_scale=w_scale, GROUP=GROUP
        )
    else:
        part = tl.program_id(1)
        start, stop = part * length, tl.minimum((part + 1) * length, K)
        acc = product(
            x, w, M, N, K, row, col, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, TMA, start, stop, x_scale, w_scale, GROUP
        )
        offs_m, offs_n = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N)
        mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
        offs = offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
        tl.store(parts_ptr + part * M * N + offs, acc, mask=mask)
        if not arrives_last(counter_ptr + tl.program_id(0), PARTS):
            return
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for other in tl.static_range(PARTS):
            acc += tl.load(parts_ptr + other * M * N + offs, mask=mask, other=0.0, cache_modifier=".cg")
    HALF: tl.constexpr = BLOCK_N // 2
    if BLOCK_N <= 128:
        gated_add(acc, bias_ptr, gate_ptr, residual_ptr, out_ptr, stride_gate, L, M, N, row, col, BLOCK_M, BLOCK_N)
    else:  # in halves: the residual of a whole tile would not fit in the registers
        left, right = tl.split(tl.permute(tl.reshape(acc, (BLOCK_M, 2, HALF)), (0, 2, 1)))
        gated_add(left, bias_ptr, gate_ptr, residual_ptr, out_ptr, stride_gate, L, M, N, row, col, BLOCK_M, HALF)
        col += HALF
        gated_add(right, bias_ptr, gate_ptr, residual_ptr, out_ptr, stride_gate, L, M, N, row, col, BLOCK_M, HALF)


def why_not(
    residual: torch.Tensor,
    x: Rows,
    weight: Weight,
    bias: torch.Tensor,
    gate: torch.Tensor,
    out: torch.Tensor | None = None,
) -> str | None:
    if is_packed(values_of(weight)):
        return "the weight is packed for a CPU"
    if out is not None and not out.is_contiguous():
        return "out is not contiguous"
    return None


def cut(M: int, N: int, K: int, device: torch.device, element: int) -> tuple[Tile, int]:
    """The tile of the product, and into how many parts its terms are split: as many as leave one wave of programs."""
    if FEW_ROWS < M <= MANY_ROWS and K >= DEEP and element <= 2:
        for parts in range(MOST_PARTS, 1, -1):
            # As many programs, each as long, as a product of more columns and fewer terms.
            tile = product_tile(M, parts * N, K // parts, device, element)
            if parts * programs(M, N, tile)[0] <= MULTIPROCESSORS:
                return tile, parts
    return product_tile(M, N, K, device, element, most_n=256), 1


def gated_residual_triton(
    residual: torch.Tensor,
    x: Rows,
    weight: Weight,
    bias: torch.Tensor,
    gate: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    (B, L, K), device = values_of(x).shape, residual.device
    M, N = B * L, residual.shape[2]
    residual, bias = residual.contiguous(), bias.contiguous()
    gate = gate if gate.stride(-1) == 1 else gate.contiguous()  # its rows may be those of a larger table
    out = torch.empty_like(residual) if out is None else out
    if out.numel() == 0:
        return out
    rows, matrix = matrices(x, weight)
    tile, parts = cut(M, N, K, device, values_of(x).element_size())
    sums = counter = None
    length = K
    if parts > 1:
        sums = torch.empty(parts, M, N, device=device, dtype=torch.float32)
        counter = counters(programs(M, N, tile)[0], device)
        length = triton.cdiv(K, parts * 2 * tile.k) * 2 * tile.k
    gated_residual_fwd_kernel[(*programs(M, N, tile), parts)](
        bias_ptr=bias,
        gate_ptr=gate,
        residual_ptr=residual,
        out_ptr=out,
        parts_ptr=sums,
        counter_ptr=counter,
        length=length,
        stride_gate=gate.stride(0),
        L=L,
        PARTS=parts,
        **operands(rows, matrix, tile),
    )
    return out
