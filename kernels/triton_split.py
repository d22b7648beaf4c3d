"""Work on one result split among programs, finished by whichever comes last: no second launch.

Programs write their parts, and count themselves on a counter that their result has; the last adds the parts up, always
in the same order, so that the result does not depend on who was last.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

COUNTERS = 1 << 16


@triton.jit
def arrives_last(counter_ptr, parts):
    """Whether this program is the last of `parts` at its counter. What the others wrote before is then visible to loads
    that pass the first-level cache (`cache_modifier=".cg"`), and the counter is zero again for the next launch."""
    tl.debug_barrier()  # all threads of this program have written
    before = tl.atomic_add(counter_ptr, 1, sem="acq_rel")
    last = before == parts - 1
    if last:
        tl.store(counter_ptr, 0)
    return last


@functools.lru_cache(maxsize=256)
def _zeros(device: torch.device, stream: int) -> torch.Tensor:
    return torch.zeros(COUNTERS, dtype=torch.int32, device=device)


def counters(count: int, device: torch.device) -> torch.Tensor:
    """At least `count` int32 zeros. Every launch leaves them zero, so that those of a stream, which run one after the
    other, share them; a graph has those of the stream that it was captured on."""
    if count > COUNTERS:
        raise ValueError(f"split: {count} results are split, at most {COUNTERS} can be")
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return _zeros(device, stream)
