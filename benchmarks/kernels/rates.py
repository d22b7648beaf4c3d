"""What a time means: rates by the op's cost model, their share of this session's ceilings, the ratio to eager."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_suite.timing import spread
from benchmarks.machine import gemm_ceiling
from benchmarks.roofline import copy_ceiling
from varsr_engine.kernels.spec import Cost

GEMM_SIDE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Ceilings:
    """The most that the machine gave in this session: a large product of torch's, a large copy."""

    flop_per_s: float
    bytes_per_s: float

    @classmethod
    def measured(cls, device: torch.device, dtype: torch.dtype) -> Ceilings:
        return cls(gemm_ceiling(device, dtype, GEMM_SIDE[device.type]), copy_ceiling(device))


def rates(cost: Cost, seconds: float, ceilings: Ceilings) -> dict[str, Any]:
    """GB/s and TFLOP/s of a call, and the larger of their shares of the ceilings, which names the limit.

    A call whose data stay in the caches may exceed the copy's.
    """
    shares = {
        "traffic": cost.bytes / seconds / ceilings.bytes_per_s,
        "arithmetic": cost.flops / seconds / ceilings.flop_per_s,
    }
    limit = max(shares, key=lambda name: shares[name])
    return {
        "gb_per_s": cost.bytes / seconds / 1e9,
        "tflop_per_s": cost.flops / seconds / 1e12,
        "of_ceiling": shares[limit],
        "limit": limit,
    }


def times_eager(eager: Sequence[float], own: Sequence[float]) -> dict[str, Any]:
    """How often faster than eager, within each round: median and quartiles."""
    return spread([a / b for a, b in zip(eager, own, strict=True)])
