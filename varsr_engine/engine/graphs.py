"""CUDA graphs: a whole image as one launch, captured once a shape and replayed with new contents."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Tensors = tuple[torch.Tensor, ...]
Program = Callable[..., Tensors]
Replay = Callable[[], None]
Capture = Callable[[Program, Tensors], tuple[Replay, Tensors]]

WARM_UP_RUNS = (
    2  # kernels compile, cuDNN and cuBLAS choose and take their workspaces: none of it may happen in a capture
)


class CudaCapture:
    """Captures programs on one device into graphs that share their memory: they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None  # an opaque handle

    def __call__(self, program: Program, inputs: Tensors) -> tuple[Replay, Tensors]:
        """(replay, outputs): each replay() computes program(*inputs) anew from what inputs hold, into outputs."""
        with torch.cuda.device(self._device):
            self._stream = self._stream or torch.cuda.Stream()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP_RUNS):
                    program(*inputs)
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                outputs = program(*inputs)
        return graph.replay, outputs


@dataclass(frozen=True, slots=True)
class CapturedProgram:
    inputs: Tensors  # what a replay reads
    replay: Replay
    outputs: Tensors  # what it writes


class GraphCache:
    """Programs by key, captured at their first run. A key tells everything that decides what a program does."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._programs: dict[Hashable, CapturedProgram] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._programs

    def run(self, key: Hashable, program: Program, inputs: Tensors) -> Tensors:
        """program(*inputs), by the graph of that key. The results are copies: the next replay does not change them."""
        if key not in self._programs:
            static = tuple(t.clone() for t in inputs)
            self._programs[key] = CapturedProgram(static, *self._capture(program, static))
        captured = self._programs[key]
        for mine, given in zip(captured.inputs, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        captured.replay()
        return tuple(t.clone() for t in captured.outputs)


def graph_sizes(largest: int) -> list[int]:
    """Batch sizes that get a graph, largest first: it takes the memory that the others then share."""
    sizes = [1 << n for n in range(largest.bit_length()) if 1 << n < largest]
    return [largest, *reversed(sizes)]


def chunks(batch: int, largest: int) -> list[tuple[int, int, int]]:
    """(first row, rows, graph size) of each run that a batch takes: full ones, then the smallest for the rest."""
    parts = []
    for start in range(0, batch, largest):
        rows = min(largest, batch - start)
        parts.append((start, rows, min(size for size in graph_sizes(largest) if size >= rows)))
    return parts


def padded(t: torch.Tensor, start: int, rows: int, size: int) -> torch.Tensor:
    """Rows start ... of a batch, the last one repeated up to `size`: what no image depends on, and no NaN."""
    part = t[start : start + rows]
    return part if rows == size else torch.cat((part, part[-1:].expand(size - rows, *part.shape[1:])))


def run_in_chunks(
    cache: GraphCache, key: Hashable, program: Program, inputs: Sequence[torch.Tensor], largest: int
) -> Tensors:
    """`GraphCache.run` on a batch of any size: cut into graphs' sizes, padded up to them, the padding cut off again."""
    results = []
    for start, rows, size in chunks(inputs[0].shape[0], largest):
        outputs = cache.run((key, size), program, tuple(padded(t, start, rows, size) for t in inputs))
        results.append([t[:rows] for t in outputs])
    return tuple(torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*results, strict=True))
