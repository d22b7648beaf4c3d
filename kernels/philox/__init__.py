"""Gaussian noise from a counter-based generator, independent of batch, order and device."""

from __future__ import annotations

import torch

from varsr_engine.dispatch import Op
from varsr_engine.kernels.philox.reference import philox_normal_reference
from varsr_engine.kernels.spec import check_ndim

_op = Op("philox_normal")
_op.register("torch", philox_normal_reference)


def philox_normal(
    seeds: torch.Tensor,
    positions: torch.Tensor,
    count: int,
    *,
    step: int,
    stream: int,
    backend: str | None = None,
) -> torch.Tensor:
    """noise[b, n, e] = normal(Philox4x32-10(key = seeds[b], counter = (e // 4, positions[n], step, stream)))[e % 4].

    seeds (B,) int64, positions (N,) int64 in [0, 2^32), result (B, N, count) float32, by the Box-Muller transform.
    Source: Salmon et al., SC 2011; the float mapping is that of Triton's `tl.randn4x`.
    """
    for name, t, symbol in (("seeds", seeds, "(B,)"), ("positions", positions, "(N,)")):
        check_ndim("philox_normal", name, t, symbol, 1)
        if t.dtype != torch.int64:
            raise TypeError(f"philox_normal: {name} must be torch.int64, got {t.dtype}")
    result: torch.Tensor = _op(seeds, positions, count, step, stream, backend=backend)
    return result
