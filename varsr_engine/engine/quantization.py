"""Which layers run in FP8, at which steps of the scale loop. Settings only: imports no torch."""

from __future__ import annotations

import re
from typing import NamedTuple

from varsr_engine.errors import InvalidParamsError

QUANTIZATIONS = ("none", "fp8")


class Fp8Switches(NamedTuple):
    """Where a block's qkv, fc1 and fc2 are FP8; proj, whose input is attention's, stays in the compute dtype."""

    layers: frozenset[int]
    steps: frozenset[int]


def parse_indices(name: str, text: str, count: int | None = None) -> frozenset[int]:
    """The indices that "all", "5" or "0,5-9" stands for, of `count`; if that is None, only the syntax is checked."""
    if text == "all":
        return frozenset(range(count or 0))
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r" *([0-9]+) *(?:- *([0-9]+) *)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise InvalidParamsError(f"{name} must be all, or indices and ranges such as 0,5-9, got {text!r}")
        if count is not None and last >= count:
            raise InvalidParamsError(f"{name} must be indices from 0 to {count - 1} for this model, got {text!r}")
        found.update(range(first, last + 1) if count is not None else ())
    return frozenset(found)
