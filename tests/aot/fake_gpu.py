"""A GPU that is not there: the engine runs on meta tensors, and what it would launch is recorded.

Meta tensors have shapes and no values, so that code whose control flow needs a value fails, as it does in a CUDA graph.
Run in a process of its own, without TRITON_INTERPRET: Triton decides at import whether kernels are interpreted.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from varsr_engine.kernels.triton_backend import assume_capability

# Operators that give memory or another view of it, and launch nothing.
SILENT = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "_unsafe_view"}
# Operators that wait for the device.
SYNCHRONISING = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "item", "equal"}


OnKernel = Callable[[JITFunction[Any], tuple[Any, ...], dict[str, Any]], None]


class HostSynchronisation(AssertionError):
    """The host would wait for the device, or copy to or from it."""


class FakeDriver:
    """What Triton asks a device for before it compiles."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


@dataclass(slots=True)
class Launches:
    """Kernels by name, Triton's and torch's: each operator that is not a view counts once."""

    triton: Counter[str] = field(default_factory=Counter)
    torch: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.triton.total() + self.torch.total()


class Recorder(TorchDispatchMode):
    """Counts operators on meta tensors; raises at those that synchronise."""

    def __init__(self, launches: Launches) -> None:
        super().__init__()
        self.launches = launches

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name == "conv2d":
            result = self._as_cudnn(result, *args)
        devices = {t.device.type for t in _tensors((args, kwargs or {}, result)) if t.ndim > 0 or t.is_meta}
        if "meta" not in devices:
            return result
        if name in SYNCHRONISING or (name in ("to", "_to_copy", "copy_") and len(devices) > 1):
            raise HostSynchronisation(f"{name} in the middle of the image: on {sorted(devices)}")
        if name not in SILENT and (not func.is_view or _copied((args, kwargs), result)):
            self.launches.torch[name] += 1
        return result

    def _as_cudnn(
        self, result: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *_: Any
    ) -> torch.Tensor:
        """The result in cuDNN's layout. torch adds a bias, and lays out what is not channels-last, by other kernels."""
        if bias is not None:
            self.launches.torch["conv2d, its bias"] += 1
        if not (_channels_last(x) or _channels_last(weight)):
            return result
        self.launches.torch["conv2d, another layout"] += (not _channels_last(x)) + (not _channels_last(weight))
        return torch.empty_like(result, memory_format=torch.channels_last)


def _channels_last(t: torch.Tensor) -> bool:
    return t.is_contiguous(memory_format=torch.channels_last)


def _copied(given: Any, result: Any) -> bool:
    """Whether an operator that may return a view (`to`, `contiguous`, `reshape`) has made a copy."""
    storages = {t.untyped_storage()._cdata for t in _tensors(given)}
    return any(t.untyped_storage()._cdata not in storages for t in _tensors(result))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)


class FakeGPU:
    """Of compute capability arch / 10. on_kernel(kernel, arguments, keywords) sees each recorded Triton launch."""

    def __init__(self, on_kernel: OnKernel | None = None) -> None:
        self._on_kernel = on_kernel
        self._launches: Launches | None = None

    @contextlib.contextmanager
    def recording(self) -> Iterator[Launches]:
        """What is launched within this context, where waiting for the device is an error."""
        self._launches = Launches()
        with Recorder(self._launches):
            yield self._launches
        self._launches = None

    def _run(self, kernel: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        if self._launches is None:
            return
        self._launches.triton[kernel.fn.__name__] += 1
        if self._on_kernel is not None:
            self._on_kernel(kernel, args, kwargs)


@contextlib.contextmanager
def fake_gpu(arch: int = 90, on_kernel: OnKernel | None = None) -> Iterator[FakeGPU]:
    """Within this context `torch.device("meta")` is a `FakeGPU`."""
    gpu = FakeGPU(on_kernel)
    driver.set_active(FakeDriver(arch))  # type: ignore[arg-type]
    run = mock.patch.object(JITFunction, "run", lambda kernel, *args, **kwargs: gpu._run(kernel, *args, **kwargs))
    with run, assume_capability(*divmod(arch, 10)):
        yield gpu
