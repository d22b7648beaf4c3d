"""Parts of the model that are not needed all the time, and what they cost while they rest."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Generic, TypeVar

# The parts by the stage that uses them, and the prefixes of their parameters' names.
PARTS: dict[str, tuple[str, ...]] = {
    "condition": ("transformer.con_embedding.",),
    "refiner": ("transformer.diffloss.",),
    "decoder": ("vae.decoder.", "vae.post_quant_conv."),
}

T = TypeVar("T")
R = TypeVar("R")


class Part(Generic[T]):
    """Weights that are loaded when first used.

    With keep=False they are dropped after each use. That is free where the file's own pages serve as weights (the
    system keeps them cached), and takes them out of the memory peak of the other stages.
    """

    def __init__(self, load: Callable[[], T], keep: bool) -> None:
        self._load, self._keep = load, keep
        self._value: T | None = None

    def run(self, use: Callable[[T], R]) -> R:
        """use(weights). No reference to dropped weights outlives the call, unless `use` keeps one."""
        if self._value is not None:
            return use(self._value)
        if self._keep:
            self._value = self._load()
            return use(self._value)
        result = use(self._load())
        return_free_memory()
        return result


def return_free_memory() -> None:
    """Give freed memory back to the system where the C library keeps it: 140 MB after the published decoder."""
    if _MALLOC_TRIM is not None:
        _MALLOC_TRIM(0)


_MALLOC_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None  # glibc has it
