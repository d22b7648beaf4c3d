"""scale_handoff in CUDA C++ (csrc/cuda/scale_handoff.cu), float32: one kernel writes f_hat, the next reads it.

The first has a block a row of the map and 16 channels, the second a block a row of the next scale and 256 channels.
"""

from __future__ import annotations

import torch

from varsr_engine.kernels.cuda_backend import MOST_IN_GRID, aligned, launch
from varsr_engine.kernels.scale_handoff.reference import Handoff

WIDEST = 32  # p, p_k, p_(k+1) and Z: a lane a column, and what lies in shared memory
VECTOR = 4  # floats


def why_not(
    tokens: torch.Tensor, codebook: torch.Tensor, constants: Handoff, f_hat: torch.Tensor, copies: int = 1
) -> str | None:
    _, Z, p, _ = f_hat.shape
    side, next_side, C = constants.upsample.shape[1], constants.downsample.shape[0], constants.embed_weight.shape[0]
    if max(p, side, next_side, Z) > WIDEST:
        return f"(Z, p, p_k, p_(k+1)) is {(Z, p, side, next_side)}, more than {WIDEST}"
    if Z % VECTOR != 0 or C % VECTOR != 0:
        return f"(Z, C) is {(Z, C)}, not multiples of {VECTOR}"
    if f_hat.shape[0] > MOST_IN_GRID:
        return f"B is {f_hat.shape[0]}, more than {MOST_IN_GRID}"
    named = {"codebook": codebook, "f_hat": f_hat, **constants._asdict()}
    for name, t in named.items():
        if isinstance(t, torch.Tensor) and t.dtype != torch.float32:
            return f"{name} is {t.dtype}, not torch.float32"
    return None


def scale_handoff_cuda(
    tokens: torch.Tensor, codebook: torch.Tensor, constants: Handoff, f_hat: torch.Tensor, copies: int = 1
) -> torch.Tensor:
    c, (B, Z, p, _), device = constants, f_hat.shape, f_hat.device
    side, next_side, C = c.upsample.shape[1], c.downsample.shape[0], c.embed_weight.shape[0]
    out = torch.empty(copies * B, next_side * next_side, C, device=device, dtype=f_hat.dtype)
    if B == 0:
        return out
    launch(
        "handoff_accumulate",
        device,
        *(tokens.contiguous(), aligned(codebook), c.upsample.contiguous()),
        *(c.phi_weight.contiguous(), c.phi_bias.contiguous(), float(c.phi_ratio)),
        *(f_hat, *f_hat.stride()),
        *(B, Z, p, side),
    )
    launch(
        "handoff_pool_embed",
        device,
        *(f_hat, *f_hat.stride()),
        *(c.downsample.contiguous(), aligned(c.embed_weight), aligned(c.embed_bias)),
        *(out, B, Z, p, next_side, C, copies),
    )
    return out
