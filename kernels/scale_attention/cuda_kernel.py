"""scale_attention in CUDA C++: by mma.sync for every shape (csrc/cuda/scale_attention.cu), and by wgmma on Hopper for
many queries (csrc/cuda/scale_attention_sm90.cu).

Both share a call's work out in a line: blocks of keys of one tile of queries behind the other, cut into as many equal
ranges as run at once. A tile that several ranges share is added up in float32 by whichever comes last, in the order of
its keys. Compiled, and emulated in tests, but not yet run on a GPU: the op takes the first one where it is asked for,
and the second, whose barriers could wait for ever, only where `HOPPER_BY_NAME` says so.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from varsr_engine.kernels.cuda_backend import dtype_code, launch, why_not_aligned
from varsr_engine.kernels.cuda_product import multiprocessors

HEAD_DIM = 64
HOPPER_BY_NAME = False  # whether the op's "cuda" is the wgmma kernel where that takes a call: to be set once it has run
PART_BYTES = 4608  # of 16 rows: sums of 64 columns and of weights, and their maxima, in float32
MOST_UNITS = 2**31 - 1
SMALLEST_COUNTERS = 1 << 16


class Kernel(NamedTuple):
    """A tile's queries, a block's keys, and how many blocks of threads a multiprocessor holds."""

    rows: int
    keys: int
    resident: int


FEW, MANY, HOPPER = Kernel(16, 64, 3), Kernel(64, 64, 3), Kernel(128, 128, 1)
SMALL_REST = 16  # queries behind whole tiles of 128: so few are a call of their own, not a tile of padding


class Work(NamedTuple):
    """tiles * blocks units in a line, cut into ranges: `begin(i)` is where the i-th starts."""

    tiles: int
    blocks: int
    ranges: int

    def begin(self, i: int) -> int:
        return self.tiles * self.blocks * i // self.ranges


def work_of(kernel: Kernel, heads: int, L: int, S: int, processors: int) -> Work:
    """As many ranges as run at once, or one a unit."""
    tiles, blocks = heads * -(-L // kernel.rows), -(-S // kernel.keys)
    return Work(tiles, blocks, min(tiles * blocks, kernel.resident * processors))


def why_not(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
) -> str | None:
    B, H, L, D = q.shape
    if D != HEAD_DIM:
        return f"the head dimension is {D}, not {HEAD_DIM}"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"the tensors are {q.dtype}; the kernels are for float16 and bfloat16"
    if bound is not None and (bound.dtype != torch.float32 or not bound.is_contiguous()):
        return f"bound is {bound.dtype}, or not contiguous: it must be torch.float32 in one piece"
    if B * H * -(-L // FEW.rows) * -(-k.shape[2] // FEW.keys) > MOST_UNITS:
        return f"(B, H, L, S) is {(B, H, L, k.shape[2])}: more tiles and blocks of keys than {MOST_UNITS}"
    return why_not_aligned(q=q, k=k, v=v, out=out)


def why_not_hopper(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
) -> str | None:
    """Why the wgmma kernel does not take a call that `why_not` has nothing against, or None."""
    if q.is_cuda and torch.cuda.get_device_capability(q.device)[0] != 9:
        return "the device is no Hopper"
    if q.shape[2] < HOPPER.rows // 2:
        return f"there are {q.shape[2]} queries: a tile has {HOPPER.rows}"
    for name, t in (("k", k), ("v", v)):
        if any(size > 1 and stride <= 0 for size, stride in zip(t.shape[:3], t.stride()[:3], strict=True)):
            return f"{name} is expanded: TMA needs positive strides"
    return None


@functools.lru_cache(maxsize=256)
def _zeros(count: int, device: torch.device, stream: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int32, device=device)


def counters(count: int, device: torch.device) -> torch.Tensor:
    """At least `count` int32 zeros. Every launch leaves them zero: those of a stream share them, as they follow one
    another."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return _zeros(max(SMALLEST_COUNTERS, 1 << (count - 1).bit_length()), device, stream)


def _strides(t: torch.Tensor) -> tuple[int, ...]:
    """From batch to batch, head to head and row to row; one of no step is that of a whole tensor."""
    return tuple(t.numel() if size == 1 else stride for size, stride in zip(t.shape[:3], t.stride()[:3], strict=True))


def run(
    kernel: Kernel,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    bound: torch.Tensor | None,
    processors: int | None = None,
) -> None:
    (B, H, L, _), S = q.shape, k.shape[2]
    work = work_of(kernel, B * H, L, S, processors or multiprocessors(q.device))
    warps = kernel.rows // 16
    parts = torch.empty(2 * work.ranges * warps * PART_BYTES, dtype=torch.uint8, device=q.device)
    hopper = kernel is HOPPER
    launch(
        "scale_attention_sm90" if hopper else "scale_attention",
        q.device,
        *(q, k, v, bound, out, parts, counters(work.tiles * warps, q.device)),
        *(*q.stride()[:3], *_strides(k), *_strides(v), *out.stride()[:2]),
        *(B, H, L, S),
        *(() if hopper else (kernel.rows,)),
        *(work.ranges, dtype_code(q.dtype)),
    )


def scale_attention_hopper(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
    processors: int | None = None,
) -> torch.Tensor:
    """By wgmma; few queries behind whole tiles, as the 1025th of the first step, by the other kernel."""
    B, H, L, D = q.shape
    out = torch.empty(B, L, H * D, device=q.device, dtype=q.dtype) if out is None else out
    if out.numel() == 0:
        return out
    rest = L % HOPPER.rows
    whole = L - rest if 0 < rest <= SMALL_REST else L
    if whole < L:
        run(FEW, q[:, :, whole:], k, v, out[:, whole:], bound, processors)
    if whole > 0:
        run(HOPPER, q[:, :, :whole], k, v, out[:, :whole], bound, processors)
    return out


def scale_attention_cuda(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor | None = None,
    bound: torch.Tensor | None = None,
) -> torch.Tensor:
    B, H, L, D = q.shape
    out = torch.empty(B, L, H * D, device=q.device, dtype=q.dtype) if out is None else out
    if out.numel() == 0:
        return out
    if HOPPER_BY_NAME and q.is_cuda and why_not_hopper(q, k, v) is None:
        return scale_attention_hopper(q, k, v, out, bound)
    run(FEW if FEW.rows >= L else MANY, q, k, v, out, bound)
    return out
