"""Hopper's products in CUDA C++ (csrc/cuda/product_sm90.cuh): TMA, a ring of barriers, wgmma, the engine's epilogues.

Compiled, and emulated in tests, but not yet run on a GPU: no op takes them. Tiles are a function of the shape, as in
`triton_product`. What an op needs to take one is its `why_not_product` and its launcher here.
"""

from __future__ import annotations

import functools

import torch

from varsr_engine.kernels.cuda_backend import aligned, dtype_code, launch
from varsr_engine.kernels.quantized import QuantizedRows, QuantizedWeight

HEAD_DIM = 64
# Tiles that are compiled (csrc/cuda/product_sm90.cu), rows by columns; any multiple of 8 columns could be.
PLAIN = ((128, 128), (128, 160), (192, 128), (192, 144))
GATED = ((128, 112), (128, 128), (192, 128))
QKV = ((128, 128), (128, 192), (192, 128))
HEAD = ((128, 128),)
NARROW = ((128, 128), (192, 128))  # e4m3
Tiles = tuple[tuple[int, int], ...]


def why_not_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> str | None:
    """Why these products do not take x (.., K), weight (N, K) and bias (N,), or None."""
    N, K = weight.shape
    if x.is_cuda and torch.cuda.get_device_capability(x.device)[0] != 9:
        return "the device is no Hopper"
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        return f"x is {x.dtype}; products are for float16, bfloat16 and e4m3"
    if bias.dtype not in (torch.float16, torch.bfloat16):
        return f"bias is {bias.dtype}, not torch.float16 or torch.bfloat16"
    if K * x.element_size() % 16 != 0 or N % 8 != 0:
        return f"(N, K) is {(N, K)}: rows of x are not multiples of 16 bytes, or N is not one of 8"
    return None


@functools.cache
def _multiprocessors(index: int | None) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def multiprocessors(device: torch.device) -> int:
    """Of the tensors' device; of an H100 or H200 where there is none."""
    return _multiprocessors(device.index) if device.type == "cuda" else 132


def best_tile(M: int, N: int, tiles: Tiles, blocks: int) -> int:
    """The tile with the least work in its busiest block, of these the largest; as the kernels number it.

    A block's work is its tiles' elements. At M = 2048, N = 1536 that is (192, 128): 132 tiles, one wave.
    """

    def work(tile: tuple[int, int]) -> tuple[int, int]:
        m, n = tile
        waves = -(-(-(-M // m) * -(-N // n)) // blocks)
        return waves * m * n, -m * n

    m, n = min(tiles, key=work)
    return 1000 * m + n


def product(
    x: torch.Tensor | QuantizedRows,
    weight: torch.Tensor | QuantizedWeight,
    bias: torch.Tensor,
    *,
    gelu: bool = False,
    tile: int | None = None,
) -> torch.Tensor:
    """x W^T + b (M, N) in bias's dtype, or its tanh-GELU: x (M, K), weight (N, K), or both e4m3 with a scale a row."""
    row_scale = column_scale = None
    if isinstance(x, QuantizedRows):
        assert isinstance(weight, QuantizedWeight) and x.scale.shape[-1] == 1
        row_scale, column_scale = x.scale.contiguous(), weight.scale.contiguous()
        x, weight = x.values.flatten(0, -2), weight.values
    assert isinstance(x, torch.Tensor) and isinstance(weight, torch.Tensor)
    (M, K), N, blocks = x.shape, weight.shape[0], multiprocessors(x.device)
    out = torch.empty(M, N, device=x.device, dtype=bias.dtype)
    if out.numel() > 0:
        e4m3 = row_scale is not None
        launch(
            "product_sm90",
            x.device,
            *(aligned(x), aligned(weight), bias.contiguous(), out, row_scale, column_scale),
            *(M, N, K, gelu, e4m3, dtype_code(bias.dtype)),
            *(tile or best_tile(M, N, NARROW if e4m3 else PLAIN, blocks), blocks),
        )
    return out


def product_gated_residual(
    residual: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    gate: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    tile: int | None = None,
) -> torch.Tensor:
    """residual + gate * (x W^T + b): residual (B, L, N) and gate (B, N) float32; `out` may be `residual`."""
    (B, L, N), K, blocks = residual.shape, x.shape[-1], multiprocessors(x.device)
    residual = aligned(residual)
    gate = gate if gate.stride(-1) == 1 else gate.contiguous()
    out = torch.empty_like(residual) if out is None else out
    if out.numel() > 0:
        launch(
            "product_gated_residual_sm90",
            x.device,
            *(aligned(x), aligned(weight), bias.contiguous(), gate, residual, out),
            *(gate.stride(0), L, B * L, N, K, dtype_code(x.dtype)),
            *(tile or best_tile(B * L, N, GATED, blocks), blocks),
        )
    return out


def product_qkv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    q_scale: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: int,
    num_queries: int,
    *,
    tile: int | None = None,
) -> torch.Tensor:
    """`qkv_norm_rope_cache` with heads of 64, its epilogue inside the product."""
    (B, L, C), H, blocks = x.shape, q_scale.shape[0], multiprocessors(x.device)
    q = torch.empty(B, H, num_queries, HEAD_DIM, device=x.device, dtype=x.dtype)
    k, v = k_cache.narrow(2, position, L), v_cache.narrow(2, position, L)
    launch(
        "product_qkv_sm90",
        x.device,
        *(aligned(x), aligned(weight), bias.contiguous(), q_scale.contiguous(), cos.contiguous(), sin.contiguous()),
        *(q, k, v),
        *(stride for t in (q, k, v) for stride in t.stride()[:3]),
        *(B * L, L, L - num_queries, H, dtype_code(x.dtype)),
        *(tile or best_tile(B * L, 3 * C, QKV, blocks), blocks),
    )
    return q


def product_argmax(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, tile: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens (M,), logits (M, V) float32) of logits = x W^T + b: the lowest index on ties."""
    (M, K), V, blocks = x.shape, weight.shape[0], multiprocessors(x.device)
    logits = torch.empty(M, V, device=x.device, dtype=torch.float32)
    tokens = torch.empty(M, device=x.device, dtype=torch.int64)
    keys = torch.zeros(M, device=x.device, dtype=torch.int64)
    launch(
        "product_argmax_sm90",
        x.device,
        *(aligned(x), aligned(weight), bias.contiguous(), logits, keys, tokens),
        *(M, V, K, dtype_code(x.dtype), tile or best_tile(M, V, HEAD, blocks), blocks),
    )
    return tokens, logits
