"""The product inside every Triton kernel that has one, and the tiles that it is cut into.

`product` gives a tile of X W^T in float32. X (M, K) and W (N, K) come as host-made TMA descriptors, or as pointers to
contiguous rows: descriptors need a Hopper GPU, and rows of a multiple of 16 bytes. Either both are plain matrices, or
both are quantized (`varsr_engine.kernels.quantized`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from varsr_engine.kernels.quantized import (
    GROUP,
    LARGEST,
    LEAST,
    QuantizedRows,
    QuantizedWeight,
    Rows,
    Weight,
    values_of,
)
from varsr_engine.kernels.triton_backend import capability

MULTIPROCESSORS = 132  # of an H100 or H200, for which tiles are chosen
ENOUGH = 90  # programs that can stream a weight at the memory's speed, each with 30 KB or more in flight
KB = 1024
E4M3_LARGEST, E4M3_LEAST = tl.constexpr(LARGEST), tl.constexpr(LEAST)
# Shared memory of a multiprocessor that a program's steps in flight may take; other devices have 100 KB.
SHARED_MEMORY = {(8, 0): 160 * KB, (9, 0): 200 * KB, (10, 0): 200 * KB}


class Tile(NamedTuple):
    """How a product is cut: rows and columns of the result and depth of a step, warps a program, steps in flight."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


@triton.jit
def load_rows(source, row, col, rows, cols, ROWS: tl.constexpr, COLS: tl.constexpr, TMA: tl.constexpr):
    """(ROWS, COLS) of a row-major matrix (rows, cols), zeros beyond it."""
    if TMA:
        block = source.load([row, col])
    else:
        offs_r, offs_c = tl.arange(0, ROWS), tl.arange(0, COLS)
        mask = (offs_r < rows - row)[:, None] & (offs_c < cols - col)[None, :]
        corner = source + tl.cast(row, tl.int64) * cols + col
        block = tl.load(corner + offs_r[:, None] * cols + offs_c[None, :], mask=mask, other=0.0)
    return block


@triton.jit
def product_fp8(
    x,
    w,
    x_scale,
    M,
    N,
    K,
    row,
    col,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
    TMA: tl.constexpr,
    GROUP: tl.constexpr,
    start,
    end,
):
    """`product` of e4m3 values, with X's scales and without W's.

    Hopper's tensor cores add FP8 products up in fewer bits than float32 has: each step's sum is a product of its own,
    and joins the float32 total on its way through X's scales.
    """
    offs_m = row + tl.arange(0, BLOCK_M)
    scales = x_scale + offs_m * (tl.cdiv(K, GROUP) if GROUP > 0 else 1)
    scale = tl.load(scales, mask=offs_m < M, other=0.0)
    acc = tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), tl.float32)
    for k in range(start, end, BLOCK_K):
        a = load_rows(x, row, k, M, K, BLOCK_M, BLOCK_K, TMA)
        b = load_rows(w, col, k, N, K, BLOCK_N, BLOCK_K, TMA)
        if GROUP > 0:
            scale = tl.load(scales + k // GROUP, mask=offs_m < M, other=0.0)
        if SWAP:
            acc += tl.dot(b, a.T) * scale[None, :]
        else:
            acc += tl.dot(a, b.T) * scale[:, None]
    return acc.T if SWAP else acc


@triton.jit
def quantize(y):
    """Rows y (M, N) float32 as e4m3 values and the scale (M,) of each. NaN stays NaN, if not in the scale."""
    scale = tl.maximum(tl.max(tl.abs(y), axis=1), E4M3_LEAST) / E4M3_LARGEST
    return (y * (1.0 / scale)[:, None]).to(tl.float8e4nv), scale


@triton.jit
def product(
    x,
    w,
    M,
    N,
    K,
    row,
    col,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SWAP: tl.constexpr,
    TMA: tl.constexpr,
    start=0,
    stop=None,
    x_scale=None,
    w_scale=None,
    GROUP: tl.constexpr = 0,
):
    """(BLOCK_M, BLOCK_N) float32: rows row... of X times rows col... of W, transposed.

    SWAP computes W X^T instead, and turns the result: the tensor cores then see 64 or more rows of W and as few rows of
    X as there are, where padding X to 64 would waste most of the product.
    Only over the columns from `start` to `stop` if given: multiples of 2 BLOCK_K, or K.
    With scales of rows and columns X and W are e4m3; a row of X has one scale (GROUP 0), or one each GROUP columns.
    """
    end = K if stop is None else stop
    if w_scale is not None:
        acc = product_fp8(x, w, x_scale, M, N, K, row, col, BLOCK_M, BLOCK_N, BLOCK_K, SWAP, TMA, GROUP, start, end)
        offs_n = col + tl.arange(0, BLOCK_N)
        acc *= tl.load(w_scale + offs_n, mask=offs_n < N, other=0.0)[None, :]
    elif SWAP:
        turned = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for k in range(start, end, BLOCK_K):
            a = load_rows(w, col, k, N, K, BLOCK_N, BLOCK_K, TMA)
            b = load_rows(x, row, k, M, K, BLOCK_M, BLOCK_K, TMA)
            turned = tl.dot(a, b.T, turned, input_precision="ieee")
        acc = turned.T
    elif BLOCK_M * BLOCK_N <= 512:
        # A warp has one small product here, so that each waits for the one before it: two sums halve the wait.
        acc, other = tl.zeros((BLOCK_M, BLOCK_N), tl.float32), tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(start, end, 2 * BLOCK_K):
            a = load_rows(x, row, k, M, K, BLOCK_M, BLOCK_K, TMA)
            b = load_rows(w, col, k, N, K, BLOCK_N, BLOCK_K, TMA)
            acc = tl.dot(a, b.T, acc, input_precision="ieee")
            a = load_rows(x, row, k + BLOCK_K, M, K, BLOCK_M, BLOCK_K, TMA)
            b = load_rows(w, col, k + BLOCK_K, N, K, BLOCK_N, BLOCK_K, TMA)
            other = tl.dot(a, b.T, other, input_precision="ieee")
        acc += other
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(start, end, BLOCK_K):
            a = load_rows(x, row, k, M, K, BLOCK_M, BLOCK_K, TMA)
            b = load_rows(w, col, k, N, K, BLOCK_N, BLOCK_K, TMA)
            acc = tl.dot(a, b.T, acc, input_precision="ieee")
    return acc


@triton.jit
def tile_of_program(M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(row, column) of the first element of this program's tile; tiles that share rows of W run close together."""
    rows = tl.cdiv(M, BLOCK_M)
    return (tl.program_id(0) % rows) * BLOCK_M, (tl.program_id(0) // rows) * BLOCK_N


def programs(M: int, N: int, tile: Tile) -> tuple[int]:
    return (triton.cdiv(M, tile.m) * triton.cdiv(N, tile.n),)


def uses_tma(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether both can come through descriptors: their rows start at multiples of 16 bytes."""
    aligned = all(n * t.element_size() % 16 == 0 for t in (x, weight) for n in (t.stride(0), t.storage_offset()))
    return capability(x.device) >= (9, 0) and aligned and x.element_size() <= 2


def matrices(x: Rows, weight: Weight) -> tuple[Rows, Weight]:
    """x (B, L, K) as contiguous rows (B L, K), and the weight contiguous; the same for their scales."""
    if isinstance(x, QuantizedRows):
        rows: Rows = QuantizedRows(*(t.contiguous().flatten(0, 1) for t in x))
    else:
        rows = x.contiguous().flatten(0, 1)
    if isinstance(weight, QuantizedWeight):
        return rows, QuantizedWeight(*(t.contiguous() for t in weight))
    return rows, weight.contiguous()


def operands(rows: Rows, matrix: Weight, tile: Tile) -> dict[str, Any]:
    """Arguments of `product` for what `matrices` gives, by the names that kernels give them."""
    x, weight = values_of(rows), values_of(matrix)
    tma, (M, K), N = uses_tma(x, weight), x.shape, weight.shape[0]
    scales = {}
    if isinstance(rows, QuantizedRows) and isinstance(matrix, QuantizedWeight):
        group = GROUP if rows.scale.shape[-1] > 1 else 0
        scales = {"x_scale": rows.scale, "w_scale": matrix.scale, "GROUP": group}
    return {
        **scales,
        "x": TensorDescriptor.from_tensor(x, [tile.m, tile.k]) if tma else x,
        "w": TensorDescriptor.from_tensor(weight, [tile.n, tile.k]) if tma else weight,
        "M": M,
        "N": N,
        "K": K,
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
        "SWAP": tile.m < 64 <= tile.n,
        "TMA": tma,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def product_tile(
    M: int, N: int, K: int, device: torch.device, element: int = 2, *, least_n: int = 16, most_n: int = 128
) -> Tile:
    """The tile of a 16-bit or 8-bit product (M, K) x (K, N), from `least_n` to `most_n` columns wide.

    From a model of waves and of traffic from L2, and from offline compilation; no GPU has measured it yet. Few rows are
    a stream of W: enough programs, each with several steps in flight. Many rows fill the tensor cores.
    """
    if element == 4:  # float32 products are for checking: their tiles are small enough for any GPU
        return Tile(32, max(32, least_n), 32, 4, 2)
    memory = SHARED_MEMORY.get(capability(device), 96 * KB)
    hopper = capability(device)[0] in (9, 10)

    def tile(m: int, n: int, k: int, warps: int = 4, stages: int = 6) -> Tile:
        n = max(n, least_n)
        if element == 1:  # as many terms as share a scale; where they were 128 of two bytes, more steps in flight
            stages = stages * k // 64
            k, warps = GROUP, 8 if m * n > 64 * 64 else warps  # two sums of a large tile fill four warps' registers
        step = (2 if m * n <= 512 and element == 2 else 1) * (m + n) * k * element
        return Tile(m, n, k, warps, max(2, min(stages, memory // step)))

    def streaming(rows: int) -> int:
        """The most columns, up to 64, with which `rows` tiles above each other leave enough programs."""
        return next((n for n in (64, 32) if rows * triton.cdiv(N, n) >= ENOUGH), 16)

    narrow = N <= 2048
    if M <= 32:  # W is read once, and X costs nothing
        return tile(16 if M <= 16 else 32, streaming(1), 128)
    if M <= 64 or (M <= 128 and narrow):  # for a narrow product two tiles above each other, for more programs
        return tile(64, max(32, streaming(triton.cdiv(M, 64))), 128)
    if M <= 128:  # one tile holds all rows: W passes from memory to one program only
        return tile(128, streaming(1), 64)
    if M <= 512 and narrow:  # proj: 72 programs, for 162 rows as for 338
        return tile(64 if M <= 256 else 128, 64, 64)
    waves, wide_waves = (-(-triton.cdiv(M, 128) * triton.cdiv(N, n) // MULTIPROCESSORS) for n in (128, 256))
    # Doubling the columns takes a quarter off the traffic from L2, but may lose half a wave. FP8's registers are full
    # with half of that, and each step's own sum.
    if M > 512 and hopper and most_n >= 256 and 8 * wide_waves <= 5 * waves and element == 2:
        return tile(128, 256, 64, 8, 4)
    # One wave has a multiprocessor for each program; in several, three steps let two programs share one. Those of FP8
    # take too many registers for that.
    return tile(128, 128, 64, 8, 6 if waves == 1 or element == 1 else 3)
