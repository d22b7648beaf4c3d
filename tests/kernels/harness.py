"""Runs an op on each of its backends and holds the result to float64 truth.

A test file gives its op's inputs as data, and the op's formula written a second time from the paper. Backends come from
the dispatcher, so a new one meets every test without a change here.
"""

from __future__ import annotations

import contextlib
import copy
import math
import re
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import varsr_engine.kernels  # noqa: F401, registers every op
from tests.cuda import emulation
from tests.interpreter import exact_e4m3
from tests.numerics import assert_accurate, relative_error
from varsr_engine.dispatch import OPS
from varsr_engine.errors import KernelUnavailableError

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Between two float64 evaluations: their rounding, not yet the effect of an eps of 1e-6 at another place.
FLOAT64_NOISE = 1e-10
# Relative RMS error of a result, in units of the coarsest dtype's eps: each rounding adds about 0.2.
ROUNDINGS = 4.0

Function = Callable[..., Any]
Mark = pytest.MarkDecorator


def each_backend(op: str) -> Mark:
    """Parametrise `backend` over everything that is registered for the op."""
    return pytest.mark.parametrize("backend", OPS[op].backends)


def each_dtype(*dtypes: torch.dtype) -> Mark:
    """Parametrise `dtype`: the compute dtype, that of the weights."""
    return pytest.mark.parametrize("dtype", dtypes or DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def each_size(*, full: tuple[Any, ...] | None = None, **sizes: tuple[Any, ...]) -> Mark:
    """Parametrise `size` over named tuples; `full`, that of the published model, only runs on a GPU."""
    params = [pytest.param(size, id=name) for name, size in sizes.items()]
    if full is not None:
        params.append(pytest.param(full, id="full", marks=pytest.mark.gpu))
    return pytest.mark.parametrize("size", params)


def normal(*shape: int, dtype: torch.dtype = torch.float32, std: float = 1.0, mean: float = 0.0) -> Tensor:
    """Gaussian values, the same in every dtype and on every device but for their rounding."""
    return (torch.randn(shape, dtype=torch.float64) * std + mean).to(DEVICE, dtype)


def padded(t: Tensor, dim: int = -1) -> Tensor:
    """The same values inside a larger tensor, whose other elements are NaN: a kernel must not read them."""
    shape = list(t.shape)
    shape[dim] += 32
    whole = torch.full(shape, math.nan, dtype=t.dtype, device=t.device)
    view = whole.narrow(dim, 16, t.shape[dim])
    view.copy_(t)
    return view


def transposed(t: Tensor) -> Tensor:
    """The same values with the last two dimensions swapped in memory; a vector gets a stride of 2."""
    if t.ndim == 1:
        return torch.stack((t, torch.full_like(t, math.nan)), dim=1)[:, 0]
    return t.mT.contiguous().mT


each_layout = pytest.mark.parametrize("layout", [padded, transposed], ids=lambda f: f.__name__)


def map_tensors(value: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """`value` with f applied to every tensor in (named) tuples and dicts."""
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, tuple):
        items = [map_tensors(v, f) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, dict):
        return {k: map_tensors(v, f) for k, v in value.items()}
    return value


def to_float64(value: Any) -> Any:
    """`value` with its floating-point tensors in float64. One that appears twice, as in `out=x`, stays one."""
    seen: dict[int, Tensor] = {}

    def convert(t: Tensor) -> Tensor:
        return seen.setdefault(id(t), t.double() if t.is_floating_point() else t)

    return map_tensors(value, convert)


def coarsest_eps(*values: Any) -> float:
    """eps of the least precise floating-point dtype in `values`; e4m3 operands are what they are, with their scales."""
    found = [0.0]

    def note(t: Tensor) -> Tensor:
        if t.is_floating_point() and t.element_size() > 1:
            found.append(torch.finfo(t.dtype).eps)
        return t

    map_tensors(values, note)
    return max(found)


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill what torch.empty gives with NaN or the largest integer: what a kernel leaves unwritten shows."""

    def poison(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate_poisoned(*args: Any, **kwargs: Any) -> Tensor:
            t = allocate(*args, **kwargs)
            if t.dtype == torch.bool:
                return t
            return t.fill_(math.nan if t.is_floating_point() or t.is_complex() else torch.iinfo(t.dtype).max)

        return allocate_poisoned

    with contextlib.ExitStack() as stack:
        for owner, name in (
            (torch, "empty"),
            (torch, "empty_like"),
            (torch, "empty_strided"),
            (torch.Tensor, "new_empty"),
        ):
            stack.enter_context(mock.patch.object(owner, name, poison(getattr(owner, name))))
        yield


def run_case(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any] | None, backend: str) -> Any:
    """function(*args, **kwargs, backend=backend) on a copy of the arguments, layouts and aliases kept.

    Skips the test with the op's reason where the backend cannot run the call. The reference always can.
    """
    if backend == "cuda" and DEVICE.type == "cpu":
        return run_emulated(function, args, kwargs or {})
    args, kwargs = copy.deepcopy((args, kwargs or {}))
    if backend == "triton" and DEVICE.type == "cpu" and coarsest_eps(args, kwargs) == torch.finfo(torch.bfloat16).eps:
        pytest.skip("Triton's interpreter truncates to bfloat16, and its dot multiplies the raw bits")
    try:
        with poisoned_memory(), exact_e4m3(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return function(*args, **kwargs, backend=backend)
    except KernelUnavailableError as error:
        if backend == "torch":
            raise
        pytest.skip(str(error))


def run_emulated(function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`run_case` of a CUDA kernel without a GPU. Its threads take turns in several orders: the result is one."""
    if (reason := emulation.why_not()) is not None:
        pytest.skip(f"CUDA kernels are not emulated: {reason}")
    results = []
    for order in emulation.ORDERS:
        own_args, own_kwargs = copy.deepcopy((args, kwargs))
        try:
            with poisoned_memory(), emulation.on_cpu(order):
                results.append(function(*own_args, **own_kwargs, backend="cuda"))
        except KernelUnavailableError as error:
            pytest.skip(str(error))
    assert all(emulation.same_bits(results[0], other) for other in results[1:]), "the threads' order changes the result"
    return results[0]


def check(
    function: Function,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    backend: str,
    formula: Function,
    rounds_once: bool = False,
    roundings: float | None = ROUNDINGS,
    sums_eps: float = 0.0,
) -> Any:
    """Hold function's tensors on `backend` to its reference in float64, and that to `formula`. Returns the result.

    formula takes the same arguments, in float64. rounds_once: a kernel of 16 or 8 bits keeps float32 up to its last
    step (the torch reference does not). roundings: bound of the relative RMS error in units of eps; None for inputs
    that the dtype cannot resolve. sums_eps: eps of a kernel's own sums, where it is larger than the result's.
    """
    result = run_case(function, args, kwargs, backend)
    actual = as_tuple(result)
    eager = as_tuple(run_case(function, args, kwargs, "torch"))
    args64, kwargs64 = to_float64((args, kwargs or {}))
    exact = as_tuple(run_case(function, args64, kwargs64, "torch"))
    truth = as_tuple(formula(*copy.deepcopy(args64), **copy.deepcopy(kwargs64)))
    assert len(actual) == len(exact) == len(truth)
    eps = coarsest_eps(args, kwargs, actual)
    for i, parts in enumerate(zip(actual, eager, exact, truth, strict=True)):
        mine, plain, reference, independent = parts
        what = f"output {i}"
        error = relative_error(reference, independent)
        assert error <= FLOAT64_NOISE, f"{what}: the reference in float64 is {error:.1e} from the formula"
        once = rounds_once and sums_eps == 0 and backend != "torch" and mine.element_size() <= 2 and mine.numel() >= 256
        assert_accurate(mine, plain, reference, rms_slack=1.1 if once else None, least_eps=sums_eps, what=what)
        if roundings is not None:
            error, own = relative_error(mine, independent), max(eps, torch.finfo(mine.dtype).eps, sums_eps)
            assert error <= roundings * own, f"{what}: relative error {error:.1e} > {roundings} * {own:.1e}"
    return result


def as_tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def raises(kind: type[Exception], message: str) -> Any:
    """pytest.raises with the exact wording."""
    return pytest.raises(kind, match=f"^{re.escape(message)}$")
