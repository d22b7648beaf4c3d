"""philox_normal in CUDA C++ (csrc/cuda/philox.cu): four normals a thread, one 16-byte store."""

from __future__ import annotations

import torch

from varsr_engine.kernels.cuda_backend import MOST_IN_GRID, launch


def why_not(
    seeds: torch.Tensor,
    positions: torch.Tensor,
    count: int,
    steps: range,
    stream: int,
    std: torch.Tensor | None = None,
) -> str | None:
    if len(steps) * seeds.shape[0] > MOST_IN_GRID:
        return f"steps times B is {len(steps) * seeds.shape[0]}, more than {MOST_IN_GRID}"
    return None


def philox_normal_cuda(
    seeds: torch.Tensor,
    positions: torch.Tensor,
    count: int,
    steps: range,
    stream: int,
    std: torch.Tensor | None = None,
) -> torch.Tensor:
    B, N = seeds.shape[0], positions.shape[-1]
    out = torch.empty(len(steps), B, N, count, device=seeds.device, dtype=torch.float32)
    if out.numel() > 0:
        launch(
            "philox_normal",
            seeds.device,
            *(seeds, positions, None if std is None else std.contiguous(), out),
            *(len(steps), B, N, count),
            seeds.stride(0),
            *position_strides(positions),
            *(steps.start, stream),
        )
    return out


def position_strides(positions: torch.Tensor) -> tuple[int, int]:
    """(from image to image, from place to place) of positions (B, N), or (N,) for all images."""
    return positions.stride(0) if positions.ndim == 2 else 0, positions.stride(-1)
