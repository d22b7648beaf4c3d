"""A batch that does not fit into memory runs in smaller ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TypeVar

from varsr_engine.engine.scheduling.failures import is_out_of_memory

R = TypeVar("R")


def run_in_parts(
    run: Callable[[int, int], R], count: int, most: int, reclaim: Callable[[], None]
) -> Iterator[tuple[int, int, R]]:
    """(start, end, run(start, end)) of consecutive parts of `count` items, of about the same size, at most `most`.

    Where a part runs out of memory, it and those after it are halved; `reclaim` is called before it runs again. One
    item alone that does not fit is an error, as is anything else that run raises.
    """
    start = 0
    while start < count:
        left = count - start
        size = left // math.ceil(left / most)
        try:
            output = run(start, start + size)
        except Exception as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        else:
            yield start, start + size, output
            start += size
            continue
        most = size // 2  # here, for the error is gone, and with it the frames that held the batch
        reclaim()
