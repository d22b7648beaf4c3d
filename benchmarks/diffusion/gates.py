"""What an output and a time must be before they may stand in a table. Each function gives faults as sentences."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_DEVIATION = 1e-4  # of an output in [0, 1]


def output_faults(out: Tensor, of_another: Tensor, reseeded: Tensor | None, shape: tuple[int, ...]) -> list[str]:
    """An output must be finite, of that shape and not constant, and another for another input.

    reseeded: the output with another seed, which must be another too; None where no noise is drawn.
    """
    if tuple(out.shape) != shape:
        return [f"the output must be {shape}, got {tuple(out.shape)}"]
    if not bool(torch.isfinite(out).all()):
        return ["the output holds NaN or infinity"]
    faults = []
    deviation = float(out.float().std())
    if deviation < LEAST_DEVIATION:
        faults.append(f"the output is constant: its standard deviation is {deviation:.1e}")
    if torch.equal(out, of_another):
        faults.append("another input gives the same output")
    if reseeded is not None and torch.equal(out, reseeded):
        faults.append("another seed gives the same output")
    return faults


def speed_faults(flops: float, seconds: float, peak: float | None) -> list[str]:
    """flops: of the timed call. peak: FLOP/s of a large product, measured in the same run; None: not judged."""
    if seconds <= 0:
        return [f"a call must take time, got {seconds} s"]
    rate = flops / seconds
    if peak is not None and rate > peak:
        return [f"{rate / 1e12:.1f} TFLOP/s is more than the {peak / 1e12:.1f} of a large product: not all of it ran"]
    return []


def size_faults(found: int, expected: int | None) -> list[str]:
    """Parameters of a built peer against those of the committed count; None: there is none."""
    if expected is None or found == expected:
        return []
    return [f"{found} parameters, where {expected} were counted: run --check"]
