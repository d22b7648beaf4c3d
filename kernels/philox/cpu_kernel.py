"""philox_normal through csrc/cpu/philox.cpp."""

from __future__ import annotations

import torch

from varsr_engine.kernels import cpu_library as cpu


def why_not(
    seeds: torch.Tensor,
    positions: torch.Tensor,
    count: int,
    steps: range,
    stream: int,
    std: torch.Tensor | None = None,
) -> str | None:
    return cpu.why_not_on(seeds, positions, *([] if std is None else [std]))


def philox_normal_cpu(
    seeds: torch.Tensor,
    positions: torch.Tensor,
    count: int,
    steps: range,
    stream: int,
    std: torch.Tensor | None = None,
) -> torch.Tensor:
    B, N = seeds.shape[0], positions.shape[-1]
    positions = positions.contiguous()
    stride = N if positions.ndim == 2 else 0
    out = torch.empty(len(steps), B, N, count)
    std = None if std is None else std.contiguous()
    counts = (steps.start, len(steps), stream)
    cpu.call("philox_normal", seeds.contiguous(), positions, stride, std, *counts, out, B, N, count)
    return out
