"""The product inside every Triton kernel that has one, and the tiles that it is cut into.

`product` gives a tile of X W^T in float32. X (M, K) and W (N, K) come as host-made TMA descriptors, or as pointers to
contiguous rows: descriptors need a Hopper GPU, and rows of a multiple of 16 bytes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from varsr_engine.kernels.triton_backend import capability


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
        return source.load([row, col])
    offs_r = row + tl.arange(0, ROWS)
    offs_c = col + tl.arange(0, COLS)
    mask = (offs_r < rows)[:, None] & (offs_c < cols)[None, :]
    return tl.load(source + offs_r.to(tl.int64)[:, None] * cols + offs_c[None, :], mask=mask, other=0.0)


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
):
    """(BLOCK_M, BLOCK_N) float32: rows row... of X times rows col... of W, transposed.

    SWAP computes W X^T instead, and turns the result: the tensor cores then see 64 or more rows of W and as few rows of X
    as there are, where padding X to 64 would waste most of the product.
    """
    if SWAP:
        turned = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
        for k in range(0, K, BLOCK_K):
            a = load_rows(w, col, k, N, K, BLOCK_N, BLOCK_K, TMA)
            b = load_rows(x, row, k, M, K, BLOCK_M, BLOCK_K, TMA)
            turned = tl.dot(a, b.T, turned, input_precision="ieee")
        return turned.T
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
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
    """Whether both can come through descriptors."""
    rows_aligned = all(t.stride(0) * t.element_size() % 16 == 0 for t in (x, weight))
    return capability(x.device) >= (9, 0) and rows_aligned and x.element_size() == 2


def operands(x: torch.Tensor, weight: torch.Tensor, tile: Tile) -> dict[str, Any]:
    """Arguments of `product` for contiguous x (M, K) and weight (N, K), by the names that kernels give them."""
    tma, (M, K), N = uses_tma(x, weight), x.shape, weight.shape[0]
    return {
        "x": TensorDescriptor.from_tensor(x, [tile.m, tile.k]) if tma else x,
        "w": TensorDescriptor.from_tensor(weight, [tile.n, tile.k]) if tma else weight,
        "M": M,
        "N": N,
        "K": K,
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
        "SWAP": tile.m < 64,
        "TMA": tma,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def product_tile(M: int, N: int, K: int, device: torch.device, element: int = 2) -> Tile:
    """The tile of a 16-bit product (M, K) x (K, N).

    From the tile model of the design notes and offline compilation; no GPU has measured it yet. Few rows are a stream of
    W: as many programs as there are multiprocessors, each with several steps in flight. Many rows fill the tensor cores.
    """
    if element == 4:  # float32 products are for checking: their tiles are small enough for any GPU
        return Tile(32, 32, 32, 4, 2)
    deep = 4 if capability(device) >= (9, 0) else 3
    if M <= 16:
        return Tile(16, 64 if N > 2048 else 16, 128, 4, deep)
    if M <= 32:
        return Tile(32, 64, 128, 4, deep)
    if M <= 162:
        return Tile(64, 64, 64, 4, deep)
    if M <= 700:
        return Tile(64, 128, 64, 4, deep)
    return Tile(128, 128, 64, 8, deep)
