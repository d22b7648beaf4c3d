"""Which backend an op takes, and why not another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import varsr_engine.kernels
from tests.kernels.harness import raises
from varsr_engine import dispatch
from varsr_engine.dispatch import OPS, ORDER, Op, check_backend, use_backend
from varsr_engine.errors import KernelUnavailableError

ROOT = Path(__file__).parents[1]
FAKED = ("cuda", "triton", "torch")
NAMES = f"backend must be one of {', '.join(ORDER)} or auto, got 'cublas'"


def named(name: str) -> Callable[..., str]:
    """An implementation that answers with its backend's name."""
    return lambda *args, **kwargs: name


@pytest.fixture
def op(monkeypatch: pytest.MonkeyPatch) -> Iterator[Op]:
    """An op with three backends; Triton takes up to 8 values, CUDA up to 4. Gone after the test."""
    monkeypatch.setitem(OPS, "fake", None)  # removes the name afterwards
    monkeypatch.setattr(dispatch, "AUTOMATIC", ORDER)  # as where Triton does not interpret
    op = Op("fake")
    op.register("torch", named("torch"))
    op.register("triton", named("triton"), lambda x: None if x.numel() <= 8 else f"{x.numel()} values are more than 8")
    op.register("cuda", named("cuda"), lambda x: None if x.numel() <= 4 else "more than 4 values")
    with use_backend(None):
        yield op


def zeros(n: int, requires_grad: bool = False) -> torch.Tensor:
    return torch.zeros(n, requires_grad=requires_grad)


# --- the registry ----------------------------------------------------------------------------------------------------


def test_every_kernel_folder_has_an_op_a_reference_and_tests() -> None:
    folders = {p.parent.name for p in (ROOT / "kernels").glob("*/reference.py")}
    names = {"philox" if name == "philox_normal" else name for name in OPS}
    assert names == folders
    assert all("torch" in op.backends for op in OPS.values())
    assert {p.stem.removeprefix("test_") for p in (ROOT / "tests" / "kernels").glob("test_*.py")} >= folders
    for name in OPS:
        assert callable(getattr(varsr_engine.kernels, name))


def test_registering(op: Op) -> None:
    assert OPS["fake"] is op
    assert op.backends == FAKED  # the order of preference, not of registration
    assert [b for b in ORDER if b in FAKED] == list(FAKED) and ORDER[-1] == "torch"
    assert Op("fake").backends == ()


# --- choice ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "expected"), [(4, "cuda"), (8, "triton"), (9, "torch")])
def test_first_supported(op: Op, n: int, expected: str) -> None:
    assert op(zeros(n)) == expected
    for auto in (None, "", "auto"):
        assert op(zeros(n), backend=auto) == expected


def test_opt_in_runs_only_when_named(op: Op) -> None:
    op.register("cudnn", named("cudnn"), automatic=False)
    op.register("cuda", named("cuda"), automatic=False)
    assert op.automatic == ("triton", "torch")
    assert op(zeros(1)) == "triton"
    assert op(zeros(1), backend="cuda") == "cuda"
    with use_backend("cudnn"):
        assert op(zeros(1)) == "cudnn"


@pytest.mark.parametrize("backend", FAKED)
def test_forced(op: Op, backend: str) -> None:
    assert op(zeros(1), backend=backend) == backend
    with use_backend(backend):
        assert op(zeros(1)) == backend


def test_argument_wins_over_context(op: Op) -> None:
    with use_backend("torch"):
        assert op(zeros(1), backend="triton") == "triton"


def test_contexts_nest_and_end(op: Op) -> None:
    with use_backend("torch"):
        with use_backend("triton"):
            assert op(zeros(1)) == "triton"
            with use_backend("auto"):
                assert op(zeros(1)) == "cuda"
            assert op(zeros(1)) == "triton"
        assert op(zeros(1)) == "torch"
        with pytest.raises(RuntimeError, match="inside"), use_backend("cuda"):
            raise RuntimeError("inside")
        assert op(zeros(1)) == "torch"
    assert op(zeros(1)) == "cuda"


def test_a_forced_backend_does_not_fall_through(op: Op) -> None:
    message = "fake: backend 'triton' cannot run this call: 9 values are more than 8"
    with raises(KernelUnavailableError, message):
        op(zeros(9), backend="triton")
    with use_backend("triton"), raises(KernelUnavailableError, message):
        op(zeros(9))


def test_a_context_is_for_ops_that_have_such_an_implementation(op: Op) -> None:
    bare = Op("fake")
    bare.register("torch", named("torch"))
    with use_backend("triton"):
        assert bare(zeros(1)) == "torch"
        assert op(zeros(1)) == "triton"


def test_missing_implementations(op: Op) -> None:
    bare = Op("fake")
    with raises(KernelUnavailableError, "fake: no backend supports this call"):
        bare(zeros(1))
    bare.register("cuda", named("cuda"), lambda x: "no device")
    with raises(KernelUnavailableError, "fake: no backend supports this call"):
        bare(zeros(1))
    with raises(KernelUnavailableError, "fake: backend 'triton' cannot run this call: no such implementation"):
        bare(zeros(1), backend="triton")
    with raises(KernelUnavailableError, "fake: backend 'cuda' cannot run this call: no device"):
        bare(zeros(1), backend="cuda")


def test_unknown_backend(op: Op) -> None:
    with raises(KernelUnavailableError, NAMES):
        op(zeros(1), backend="cublas")
    with raises(KernelUnavailableError, NAMES), use_backend("cublas"):
        pass
    with raises(KernelUnavailableError, NAMES):
        check_backend("cublas")
    assert check_backend("torch") == "torch" and check_backend("auto") is None


def test_reasons(op: Op) -> None:
    assert op.reason_unsupported("cuda", zeros(4)) is None
    assert op.reason_unsupported("cuda", zeros(5)) == "more than 4 values"
    assert op.reason_unsupported("torch", zeros(100)) is None


def test_errors_inside_a_kernel_are_not_hidden(op: Op) -> None:
    def broken(x: torch.Tensor) -> None:
        raise RuntimeError("illegal address")

    op.register("cuda", broken)
    with raises(RuntimeError, "illegal address"):
        op(zeros(1))


# --- gradients -------------------------------------------------------------------------------------------------------

NO_BACKWARD = "an argument requires a gradient and this kernel has no backward"


def test_kernels_without_backward_refuse_gradients(op: Op) -> None:
    x = zeros(1, requires_grad=True)
    assert op(x) == "torch"
    assert op.reason_unsupported("cuda", x) == op.reason_unsupported("triton", x) == NO_BACKWARD
    with raises(KernelUnavailableError, f"fake: backend 'cuda' cannot run this call: {NO_BACKWARD}"):
        op(x, backend="cuda")
    with torch.no_grad():
        assert op(x) == "cuda"
    with torch.inference_mode():
        assert op(x) == "cuda"


def test_the_interpreter_runs_only_where_it_is_asked_for(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "AUTOMATIC", tuple(b for b in ORDER if b != "triton"))
    assert op(zeros(8)) == "torch"
    assert op(zeros(8), backend="triton") == "triton"


def test_gradients_of_keyword_arguments(op: Op) -> None:
    assert op.reason_unsupported("cuda", x=zeros(1, requires_grad=True)) == NO_BACKWARD
    assert op(x=zeros(1, requires_grad=True)) == "torch"


class Weights(NamedTuple):
    weight: torch.Tensor


def test_gradients_of_weights_in_a_tuple(op: Op) -> None:
    op.register("cuda", named("cuda"))
    assert op.reason_unsupported("cuda", zeros(1), Weights(zeros(1, requires_grad=True))) == NO_BACKWARD


def test_a_backend_may_say_that_it_is_differentiable(op: Op) -> None:
    op.register("triton", named("triton"), differentiable=True)
    assert op(zeros(1, requires_grad=True)) == "triton"


# --- the environment -------------------------------------------------------------------------------------------------

SCRIPT = """
from varsr_engine.dispatch import Op, use_backend
from varsr_engine.errors import KernelUnavailableError
op = Op("fake")
op.register("torch", lambda: "torch")
op.register("triton", lambda: "triton")
print(op(), op(backend="triton"))
with use_backend("triton"):
    print(op())
other = Op("other")
other.register("cpu", lambda: "cpu")
print(other())
refusing = Op("refusing")
refusing.register("torch", lambda: "torch", lambda: "not today")
try:
    refusing()
except KernelUnavailableError as error:
    print(error)
"""


def run_python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env: dict[str, Any] = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_environment_variable() -> None:
    """Weaker than the argument and the context, stronger than the order of preference."""
    done = run_python(SCRIPT, VARSR_BACKEND="torch")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "torch triton",
        "triton",
        "cpu",  # it has no other
        "refusing: backend 'torch' cannot run this call: not today",
    ]


def test_unknown_name_in_the_environment() -> None:
    done = run_python("import varsr_engine.dispatch", VARSR_BACKEND="cublas")
    assert done.returncode != 0
    assert NAMES in done.stderr
