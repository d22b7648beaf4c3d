"""What an exception says about the batch that raised it, and how it is handed to a caller."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from varsr_engine.engine.scheduling.backlog import Row
from varsr_engine.errors import NumericalError, ResourceExhaustedError, VarsrError

T = TypeVar("T")


def attempt(call: Callable[..., T], *args: Any) -> tuple[T, None] | tuple[None, BaseException]:
    """(call(*args), None), or (None, what it raised), without its traceback, which is in its notes as text.

    A traceback holds the locals of every function that the error went through and of all their callers: a batch's
    tensors, for as long as somebody keeps the error, and in a cycle with whoever does.
    """
    try:
        return call(*args), None
    except BaseException as error:
        if isinstance(error, Exception):
            error.add_note("In the engine:\n" + "".join(traceback.format_exception(error)).rstrip())
        return None, without_frames(error)


def without_frames(error: BaseException) -> BaseException:
    """The error; it and its causes hold no frames any more."""
    chain: BaseException | None = error
    seen = set()  # an error may be its own cause
    while chain is not None and id(chain) not in seen:
        seen.add(id(chain))
        chain.__traceback__ = None
        chain = chain.__cause__ or chain.__context__
    return error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may succeed."""
    torch = sys.modules.get("torch")  # not imported for this: an error of torch comes from an imported torch
    return isinstance(error, (MemoryError, ResourceExhaustedError)) or (
        torch is not None and isinstance(error, torch.OutOfMemoryError)
    )


def parts_to_retry(rows: Sequence[Row], error: BaseException) -> list[list[Row]]:
    """A failed batch of several units in parts, of which each runs by itself, in this order.

    Units that the error names run alone and after all others; where it names none, the batch is halved.
    """
    named = error.details.get("rows") if isinstance(error, NumericalError) else None
    bad = {n for n in named if n in range(len(rows))} if isinstance(named, (list, tuple)) else set()
    if not bad:
        middle = (len(rows) + 1) // 2
        return [list(rows[:middle]), list(rows[middle:])]
    good = [row for n, row in enumerate(rows) if n not in bad]
    return [*([good] if good else []), *([rows[n]] for n in sorted(bad))]


def for_caller(error: Exception) -> Exception:
    """The error as a handle raises it: of memory it is the engine's own kind."""
    if is_out_of_memory(error) and not isinstance(error, VarsrError):
        exhausted = ResourceExhaustedError(f"not enough memory for one tile ({error})")
        exhausted.__cause__ = error
        return exhausted
    return error


def error_code(error: BaseException) -> str:
    return error.code if isinstance(error, VarsrError) else VarsrError.code
