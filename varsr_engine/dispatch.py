"""Choose one implementation of an op: explicit argument > use_backend() > VARSR_BACKEND > first supported.

Some implementations only run when asked for by name: those that no measurement has shown to be the faster choice.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, Literal, get_args

import torch

from varsr_engine.errors import KernelUnavailableError

Backend = Literal["cuda", "triton", "cudnn", "flash", "cpu", "torch"]
ORDER: tuple[Backend, ...] = get_args(Backend)
# Triton's interpreter is for tests that ask for it: it takes milliseconds where a kernel takes microseconds.
AUTOMATIC = tuple(b for b in ORDER if b != "triton" or os.environ.get("TRITON_INTERPRET") != "1")

NO_SUCH_IMPLEMENTATION = "no such implementation"  # why an op does not run on a backend that it does not have

# Every op by name, in the order of their import: what `varsr info` and `varsr selftest` list.
OPS: dict[str, Op] = {}


def check_backend(name: str | None) -> Backend | None:
    """The backend called `name`; None, "" and "auto" mean: first supported."""
    if name in (None, "", "auto"):
        return None
    for backend in ORDER:
        if backend == name:
            return backend
    raise KernelUnavailableError(f"backend must be one of {', '.join(ORDER)} or auto, got {name!r}")


_FROM_ENVIRONMENT = check_backend(os.environ.get("VARSR_BACKEND"))  # read once: no call looks at the environment
_forced: ContextVar[Backend | None] = ContextVar("varsr_backend", default=_FROM_ENVIRONMENT)


@contextlib.contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """Within this context every op that has an implementation for `backend` runs on it, or raises with the reason.

    Ops without one take their first supported: a library's products and convolutions on a GPU are no Triton kernels.
    """
    token = _forced.set(check_backend(backend))
    try:
        yield
    finally:
        _forced.reset(token)


def active_backend() -> Backend | None:
    """The backend that `use_backend` or VARSR_BACKEND asks for here; None: the first supported."""
    return _forced.get()


def tensors_in(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among arguments, and inside those that are tuples of them."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from tensors_in(value)


def _always(*args: Any, **kwargs: Any) -> None:
    return None


class Op:
    """An operator with a torch reference and optional faster backends.

    A backend registers its implementation and a `why_not` predicate that takes the same arguments and
    returns None where the call is supported, else the reason in a sentence. Only the torch reference is
    differentiable unless a backend says that it is.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._impls: dict[Backend, Callable[..., Any]] = {}
        self._why_not: dict[Backend, Callable[..., str | None]] = {}
        self._differentiable: set[Backend] = {"torch"}
        self._opt_in: set[Backend] = set()
        OPS[name] = self

    @property
    def backends(self) -> tuple[Backend, ...]:
        return tuple(b for b in ORDER if b in self._impls)

    def register(
        self,
        backend: Backend,
        implementation: Callable[..., Any],
        why_not: Callable[..., str | None] = _always,
        *,
        differentiable: bool = False,
        automatic: bool = True,
    ) -> None:
        """automatic=False: runs only when asked for by name."""
        self._impls[backend] = implementation
        self._why_not[backend] = why_not
        if not automatic:
            self._opt_in.add(backend)
        if differentiable:
            self._differentiable.add(backend)

    @property
    def automatic(self) -> tuple[Backend, ...]:
        """The implementations to try, in order, where none is asked for by name."""
        return tuple(b for b in AUTOMATIC if b in self._impls and b not in self._opt_in)

    def reason_unsupported(self, backend: Backend, *args: Any, **kwargs: Any) -> str | None:
        """Why `backend` cannot run this call, or None if it can."""
        if backend not in self._impls:
            return NO_SUCH_IMPLEMENTATION
        inference_only = backend not in self._differentiable and torch.is_grad_enabled()
        if inference_only and any(t.requires_grad for t in tensors_in((*args, *kwargs.values()))):
            return "an argument requires a gradient and this kernel has no backward"
        return self._why_not[backend](*args, **kwargs)

    def __call__(self, *args: Any, backend: str | None = None, **kwargs: Any) -> Any:
        forced = check_backend(backend)
        if forced is None and (wanted := _forced.get()) in self._impls:
            forced = wanted
        if forced is not None:
            reason = self.reason_unsupported(forced, *args, **kwargs)
            if reason is not None:
                raise KernelUnavailableError(f"{self.name}: backend {forced!r} cannot run this call: {reason}")
            return self._impls[forced](*args, **kwargs)
        for candidate in self.automatic:
            if self.reason_unsupported(candidate, *args, **kwargs) is None:
                return self._impls[candidate](*args, **kwargs)
        raise KernelUnavailableError(f"{self.name}: no backend supports this call")
