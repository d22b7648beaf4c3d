"""Why a CUDA kernel does not take a call: each reason, for every kernel, and what happens without module or driver."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch

from tests.cuda import emulation
from tests.kernels.harness import raises
from varsr_engine.commands.selftest_cases import CASES, arguments
from varsr_engine.dispatch import OPS
from varsr_engine.errors import KernelUnavailableError
from varsr_engine.kernels import cuda_backend
from varsr_engine.kernels.guided_sample import Sampling

CPU = torch.device("cpu")
CUDA_OPS = [name for name, op in OPS.items() if "cuda" in op.backends]
needs_emulator = pytest.mark.skipif(emulation.why_not() is not None, reason=f"not emulated: {emulation.why_not()}")


def case(op: str, dtype: torch.dtype = torch.float16) -> list[Any]:
    """Arguments that the kernel takes, as the dispatcher passes them."""
    args = list(arguments(op, CPU, dtype))
    return args


class Change(NamedTuple):
    op: str
    argument: int
    change: Callable[[Any], Any]
    reason: str


def narrow(t: torch.Tensor) -> torch.Tensor:
    """One column less, from the same memory."""
    return t[..., :-1]


def shifted(t: torch.Tensor) -> torch.Tensor:
    """The same values one element behind a multiple of 16 bytes."""
    flat = torch.empty(t.numel() + 1, dtype=t.dtype)[1:]
    return flat.view(t.shape).copy_(t)


def columns(count: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda t: torch.zeros(*t.shape[:-1], count, dtype=t.dtype)


def with_field(**changes: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    return lambda t: t._replace(**{name: change(getattr(t, name)) for name, change in changes.items()})


SAMPLING = Sampling(*(torch.ones(2),) * 5, step=0, stream=0)
CHANGES = [
    Change("adaln", 0, columns(20), "C is 20, not a multiple of 8"),
    Change("adaln", 0, columns(9000), "C is 9000, more than 8192"),
    Change("adaln", 4, lambda t: t.mT.contiguous().mT, "out is not contiguous"),
    Change("adaln", 4, shifted, "rows of out do not start at multiples of 16 bytes"),
    Change("adaln", 0, lambda t: t.bfloat16(), "x is torch.bfloat16 and out is torch.float16: 16-bit rows keep"),
    Change("adaln", 0, lambda t: t.double(), "a tensor is torch.float64; kernels are for"),
    Change("qkv_norm_rope_cache", 6, columns(24), "D is 24, not 8 times a power of two up to 32"),
    Change("qkv_norm_rope_cache", 6, lambda t: t.mT.contiguous().mT, "the last dimension of k_cache is not contiguous"),
    Change("qkv_norm_rope_cache", 7, shifted, "rows of v_cache do not start at multiples of 16 bytes"),
    Change("qkv_norm_rope_cache", 1, lambda t: t[None], "the weight is packed for a CPU"),
    Change("qkv_norm_rope_cache", 4, lambda t: t.half(), "cos is torch.float16, not torch.float32"),
    Change("scale_attention", 0, columns(32), "the head dimension is 32, not 64"),
    Change("scale_attention", 0, lambda t: t.float(), "the tensors are torch.float32; the kernels are for float16"),
    Change("scale_attention", 0, shifted, "rows of q do not start at multiples of 16 bytes"),
    Change("scale_attention", 1, lambda t: t.mT.contiguous().mT, "the last dimension of k is not contiguous"),
    Change("scale_attention", 2, shifted, "rows of v do not start at multiples of 16 bytes"),
    Change("scale_attention", 3, lambda _: torch.empty(2, 36, 132, dtype=torch.float16)[..., 4:], "rows of out do not"),
    Change("scale_attention", 4, lambda _: torch.ones(2).half(), "bound is torch.float16, or not contiguous"),
    Change(
        "scale_attention", 0, lambda t: t[:1, :1, :1].expand(2**10, 2**14, 1600, 64), "more tiles and blocks of keys"
    ),
    Change("guided_sample", 5, lambda _: SAMPLING, "it takes the argmax only, and this call samples"),
    Change("guided_sample", 3, lambda t: t[None], "the weight is packed for a CPU"),
    Change("guided_sample", 0, columns(12), "C is 12, not a multiple of 8"),
    Change("guided_sample", 4, lambda t: t.float(), "bias is torch.float32, weight is torch.float16"),
    Change("guided_sample", 1, lambda t: t.half(), "uncond is torch.float16, not torch.float32"),
    Change("philox_normal", 3, lambda _: range(40000), "steps times B is 80000, more than 65535"),
    Change("refiner_update", 0, columns(40), "W is 40, not a multiple of 32 up to 1024"),
    Change("refiner_update", 0, columns(1056), "W is 1056, not a multiple of 32 up to 1024"),
    Change("refiner_update", 5, columns(12), "Z is 12, not a multiple of 8 up to 64"),
    Change("refiner_update", 5, columns(72), "Z is 72, not a multiple of 8 up to 64"),
    Change("refiner_update", 0, lambda t: t.half(), "hidden is torch.float16, not torch.float32"),
    Change("refiner_update", 4, lambda t: t.float(), "bias is torch.float32, weight is torch.float16"),
    Change("refiner_update", 1, lambda t: t.bfloat16(), "shift is torch.bfloat16 and scale"),
    Change("groupnorm_silu", 0, lambda t: t.contiguous(), "x is not channels-last"),
    Change("groupnorm_silu", 1, lambda t: t.float(), "weight is torch.float32, x is torch.float16"),
    Change(
        "scale_handoff", 3, lambda t: torch.zeros(2, 64, 8, 8), "(Z, p, p_k, p_(k+1)) is (64, 8, 4, 6), more than 32"
    ),
    Change("scale_handoff", 2, with_field(embed_weight=lambda t: t[:-1]), "not multiples of 4"),
    Change("scale_handoff", 1, lambda t: t.half(), "codebook is torch.float16, not torch.float32"),
]


def test_every_kernel_is_here() -> None:
    assert {change.op for change in CHANGES} == set(CUDA_OPS)
    for op in CUDA_OPS:
        module = {"philox_normal": "philox"}.get(op, op)
        assert callable(importlib.import_module(f"varsr_engine.kernels.{module}.cuda_kernel").why_not)


@needs_emulator
@pytest.mark.parametrize("op", CUDA_OPS)
def test_takes_the_usual_call(op: str) -> None:
    with emulation.on_cpu(), torch.no_grad():
        assert OPS[op].reason_unsupported("cuda", *case(op)) is None


@needs_emulator
@pytest.mark.parametrize("change", CHANGES, ids=lambda c: f"{c.op}-{c.reason[:32]}")
def test_reason(change: Change) -> None:
    args = case(change.op)
    args += [None] * (change.argument + 1 - len(args))
    args[change.argument] = change.change(args[change.argument])
    with emulation.on_cpu(), torch.no_grad():
        reason = OPS[change.op].reason_unsupported("cuda", *args)
    assert reason is not None and change.reason in reason


# --- choice ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", CUDA_OPS)
def test_runs_only_where_it_is_asked_for(op: str) -> None:
    """Nothing was measured on a GPU: the automatic choice leaves every kernel out, whatever the tensors."""
    assert not cuda_backend.MEASURED
    assert "cuda" in OPS[op].backends and "cuda" not in OPS[op].automatic


# --- no module, no device, no driver ---------------------------------------------------------------------------------


def unloaded(reason: str) -> Any:
    return mock.patch.object(cuda_backend, "_load", lambda: (None, reason))


@pytest.mark.parametrize("op", CUDA_OPS)
def test_without_the_module(op: str) -> None:
    with unloaded("varsr_engine._C was not built"):
        message = f"{op}: backend 'cuda' cannot run this call: varsr_engine._C was not built"
        with torch.no_grad(), raises(KernelUnavailableError, message):
            OPS[op](*case(op), backend="cuda")
        assert cuda_backend.about_build() == "varsr_engine._C was not built"


def test_reason_where_there_is_no_module() -> None:
    cuda_backend._load.cache_clear()
    try:
        for error, reason in (
            (
                ModuleNotFoundError("gone"),
                "varsr_engine._C was not built (no nvcc at install time, or VARSR_BUILD_CUDA=0)",
            ),
            (ImportError("a symbol"), "varsr_engine._C cannot be loaded: a symbol"),
        ):
            with mock.patch.object(importlib, "import_module", side_effect=error):
                assert cuda_backend._load() == (None, reason)
            cuda_backend._load.cache_clear()
    finally:
        cuda_backend._load.cache_clear()


def fake_module(architectures: str) -> ModuleType:
    module = ModuleType("_C")
    module.architectures = architectures  # type: ignore[attr-defined]
    module.runtime_version = lambda: 13000  # type: ignore[attr-defined]
    return module


def test_tensors_on_a_cpu_are_refused() -> None:
    with mock.patch.object(cuda_backend, "_load", lambda: (fake_module("sm_80"), "")):
        assert cuda_backend.why_not_cuda(torch.zeros(1)) == "the tensors are on cpu, not on a CUDA device"
        assert cuda_backend.about_build().startswith("sm_80, CUDA 13.0; not measured")


@pytest.mark.parametrize(
    ("capability", "reason"),
    [
        ((8, 0), None),
        ((8, 9), None),
        ((9, 0), None),
        ((7, 5), "the device has compute capability 7.5, built are sm_80, sm_90a"),
        ((10, 0), "the device has compute capability 10.0, built are sm_80, sm_90a"),
    ],
)
def test_generations(capability: tuple[int, int], reason: str | None) -> None:
    cuda_backend._why_not_device.cache_clear()
    with (
        mock.patch.object(cuda_backend, "_load", lambda: (fake_module("sm_80 sm_90a"), "")),
        mock.patch.object(torch.cuda, "get_device_capability", lambda index: capability),
    ):
        assert cuda_backend._why_not_device(0) == reason
    cuda_backend._why_not_device.cache_clear()


@needs_emulator
@pytest.mark.parametrize("op", CUDA_OPS)
def test_a_launch_without_a_driver(op: str) -> None:
    """RuntimeError with the function's name and the cause, from the bindings; the next call runs again."""
    with emulation.on_cpu(), torch.no_grad():
        with emulation.failing(emulation.NO_DRIVER), pytest.raises(RuntimeError) as failure:
            OPS[op](*case(op), backend="cuda")
        function, cause, about = str(failure.value).split(": ")
        assert hasattr(emulation.emulated(), function)
        assert (cause, about) == ("cudaErrorInsufficientDriver", "there is no driver")
        OPS[op](*case(op), backend="cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_the_built_module_without_a_driver() -> None:
    """The same from nvcc's build, which imports here all the same."""
    module, reason = cuda_backend._load()
    if module is None:
        pytest.skip(reason)
    assert module.runtime_version() >= 12000 and "sm_" in module.architectures
    with pytest.raises(RuntimeError, match=r"^adaln: cudaError\w+: .*driver"):
        module.adaln(0, 0, 0, 0, 0, 1, 1, 8, 0, 0, 1e-6, 0, 0, 0)


def test_selftest_cases_are_inputs_of_every_kernel() -> None:
    assert set(CUDA_OPS) <= set(CASES)
    assert math.isfinite(float(case("adaln")[0].sum()))
