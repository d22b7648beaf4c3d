"""qkv_norm_rope_cache in CUDA C++: a library's product into a workspace, then one kernel for all the rest.

The kernel (csrc/cuda/qkv_norm_rope_cache.cu) reads the workspace once and writes q and the cache, 16 bytes a thread.
Bytes beyond the product's own: 2 element B (2 L + num_queries) C, against an epilogue inside the product.
"""

from __future__ import annotations

import torch

from varsr_engine.kernels.cuda_backend import VECTOR_BYTES, aligned, dtype_code, launch, why_not_aligned
from varsr_engine.kernels.panels import is_packed
from varsr_engine.kernels.quantized import Rows, Weight

LANES = 32  # of a warp, inside which a head's norm is added up
MOST_VECTORS = 2**31 - 1  # of 16 bytes, which the kernel counts in int32


def why_not(
    x: Rows,
    weight: Weight,
    bias: torch.Tensor,
    q_scale: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    position: int,
    num_queries: int,
    out: torch.Tensor | None = None,
) -> str | None:
    if not isinstance(x, torch.Tensor) or not isinstance(weight, torch.Tensor):
        return "it multiplies no quantized operands"
    if is_packed(weight):
        return "the weight is packed for a CPU"
    for name, t in (("q_scale", q_scale), ("cos", cos), ("sin", sin)):
        if t.dtype != torch.float32:
            return f"{name} is {t.dtype}, not torch.float32"
    D, vector = k_cache.shape[3], VECTOR_BYTES // x.element_size()
    if D % vector != 0 or D // vector not in (1, 2, 4, 8, 16, 32):
        return f"D is {D}, not {vector} times a power of two up to {LANES}"
    if 3 * x.numel() // vector > MOST_VECTORS:
        return f"x has {x.numel()} elements, more than {MOST_VECTORS * vector // 3}"
    return why_not_aligned(k_cache=k_cache, v_cache=v_cache, out=out)


def qkv_norm_rope_cache_cuda(
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
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    B, L, C = x.shape
    H, D = k_cache.shape[1], k_cache.shape[3]
    q = torch.empty(B, H, num_queries, D, device=x.device, dtype=x.dtype) if out is None else out
    if B * L == 0:
        return q
    k, v = k_cache.narrow(2, position, L), v_cache.narrow(2, position, L)
    bias, cos, sin, q_scale = aligned(bias), aligned(cos), aligned(sin), q_scale.contiguous()

    def epilogue(first_token: int, first_part: int, parts: int) -> None:
        """Of the tokens from first_token on: `parts` of q, k, v, from first_part on."""
        channels = slice(first_part * C, (first_part + parts) * C)
        product = torch.mm(x[:, first_token:].reshape(-1, C), weight[channels].t())
        launch(
            "qkv_norm_rope_cache",
            x.device,
            product,
            bias[channels],
            q_scale,
            cos[first_token:],
            sin[first_token:],
            *(q, k, v),
            *(stride for t in (q, k, v) for stride in t.stride()[:3]),
            *(B, L - first_token, first_part, parts, H, D),
            dtype_code(x.dtype),
        )

    if num_queries == L:
        epilogue(0, 0, 3)
        return q
    epilogue(0, 1, 2)
    if num_queries > 0:
        epilogue(L - num_queries, 0, 1)
    return q
