"""What Triton's interpreter gets wrong about e4m3, put right: NaN is 384 there, and rounding up may lose a bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch


@contextlib.contextmanager
def exact_e4m3() -> Iterator[None]:
    """Within this context the interpreter converts to and from e4m3 as torch does, and as a GPU does."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        yield
        return
    convert = interpreter._convert_float
    dtypes = {tl.float16: torch.float16, tl.float32: torch.float32, tl.float8e4nv: torch.float8_e4m3fn}

    def converted(data: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
        if tl.float8e4nv not in (source, target):
            return convert(data, source, target, rounding)  # type: ignore[no-any-return]
        bits = torch.from_numpy(np.ascontiguousarray(data).view(np.uint8)).view(dtypes[source]).reshape(data.shape)
        unsigned = getattr(np, f"uint{target.primitive_bitwidth}")
        return bits.to(dtypes[target]).contiguous().view(torch.uint8).numpy().view(unsigned).reshape(data.shape)

    with mock.patch.object(interpreter, "_convert_float", converted):
        yield
