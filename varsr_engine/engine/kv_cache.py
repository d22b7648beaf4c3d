"""Keys and values of one batch: preallocated, written in place, one part a layer."""

from __future__ import annotations

import torch

from varsr_engine.config import ModelConfig


class KVCache:
    """layers x (k, v), each (rows, H, S, D), k normalised and rotated; S counts the tokens of all steps.

    On a GPU one slab holds all layers. On a CPU each layer has its own memory, whose pages exist from their first
    write on: the last scale's part of a layer is paid for only while that layer runs, and `release` gives a layer
    back after its last use. That keeps the peak at the tokens of all scales but the last.
    """

    def __init__(self, config: ModelConfig, rows: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (2, rows, config.num_heads, sum(config.step_lengths), config.head_dim)
        self._layers: list[torch.Tensor | None]
        if device.type == "cpu":
            self._layers = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.depth)]
        else:
            self._layers = list(torch.empty((config.depth, *shape), device=device, dtype=dtype))

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(k, v) of a layer, each (rows, H, S, D)."""
        cache = self._layers[index]
        assert cache is not None, "a released layer is used again"
        return cache[0], cache[1]

    def keep_rows(self, rows: int) -> None:
        """Go on with the first rows alone, in the same memory."""
        self._layers = [None if layer is None else layer[:, :rows] for layer in self._layers]

    def release(self, index: int) -> None:
        """Forget a layer: it will not be read again."""
        self._layers[index] = None
