"""Bytes that live tensors hold, and the most so far: what a memory plan is held to."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from varsr_engine.dispatch import tensors_in


class LiveBytes(TorchDispatchMode):
    """Within this context `now` and `peak` count the storages that operators made on `device` and that still live.

    What operators take for themselves and give back before they return does not show.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._device = device
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tensors_in((*args, *(kwargs or {}).values()))}
        for t in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(t, torch.Tensor) and t.device.type == self._device:
                storage = t.untyped_storage()
                if storage._cdata not in given:
                    self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return

        def gone(_: Any, size: int = storage.nbytes()) -> None:
            self._known.pop(key, None)
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
