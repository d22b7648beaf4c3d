"""Ops whose CPU kernels multiply with a weight in panels, as in the engine: the same results as with the matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels import test_gated_residual, test_mlp, test_refiner_block
from tests.kernels.harness import check, map_tensors, run_case
from varsr_engine.kernels import cpu_library, gated_residual, mlp, refiner_block
from varsr_engine.kernels.linear import cpu_kernel

no_library = cpu_library.why_not()
pytestmark = pytest.mark.skipif(no_library is not None, reason=str(no_library))

# Rows end before, on and after a tile of 14 or 6 and a block of 168 or 72, and are shared out as rows from there on;
# columns after a sum of 256, and after a block of 1536, whose sums are kept between its parts.
ROWS = (1, 7, 28, 73, 341)
DEPTHS = (32, 288, 1600)
THREADS = (1, 2, 3)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def with_panels(op: Callable[..., Any], *packed: int) -> Callable[..., Any]:
    """op, whose matrices among these arguments are packed for the CPU's kernel."""

    def call(*args: Any, backend: str, **kwargs: Any) -> Any:
        def pack(value: Any) -> Any:
            return map_tensors(value, lambda t: cpu_kernel.pack(t) if t.ndim == 2 else t)

        taken = [pack(v) if i in packed and backend == "cpu" else v for i, v in enumerate(args)]
        return op(*taken, backend=backend, **kwargs)

    return call


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("depth", DEPTHS)
def test_mlp_in_panels(rows: int, depth: int) -> None:
    args = test_mlp.inputs(1, rows, depth, 96, torch.float32)
    check(with_panels(mlp, 1), args, backend="cpu", formula=test_mlp.formula)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("depth", DEPTHS)
def test_gated_residual_in_panels(rows: int, depth: int) -> None:
    """Into memory of its own and in place: sums that wait for the rest of a deep row are not kept in `out`."""
    args = test_gated_residual.inputs(2, rows, depth, 96, torch.float32)
    on_panels = with_panels(gated_residual, 2)
    result = check(on_panels, args, backend="cpu", formula=test_gated_residual.formula)

    def in_place(residual: Tensor, *rest: Tensor, backend: str) -> Tensor:
        return on_panels(residual, *rest, out=residual, backend=backend)  # type: ignore[no-any-return]

    assert torch.equal(run_case(in_place, args, None, "cpu"), result)


@pytest.mark.parametrize("rows", ROWS)
def test_refiner_block_in_panels(rows: int) -> None:
    args = test_refiner_block.inputs(rows, 288, torch.float32)
    check(with_panels(refiner_block, 4), args, backend="cpu", formula=test_refiner_block.formula)


@pytest.mark.parametrize("rows", [28, 341])
def test_threads_change_no_bit(rows: int, threads: Callable[[int], None]) -> None:
    """Whether they share the rows or the panels."""
    args = test_mlp.inputs(1, rows, 1600, 160, torch.float32)
    results = []
    for count in THREADS:
        threads(count)
        results.append(run_case(with_panels(mlp, 1), args, None, "cpu"))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_a_nan_stays_in_its_row() -> None:
    x, weight, bias = test_mlp.inputs(1, 100, 288, 96, torch.float32)
    x[0, 41, 7] = torch.nan
    result = run_case(with_panels(mlp, 1), (x, weight, bias), None, "cpu")
    assert result[0, 41].isnan().all() and result[0, torch.arange(100) != 41].isfinite().all()


def test_activations_of_large_sums() -> None:
    """GELU is 0 or its argument there, and no exponential overflows."""
    x = torch.linspace(-300, 300, 96)[None, :, None] * torch.ones(32)
    weight = torch.zeros(32, 32)
    weight[:, 0] = 1
    result = run_case(with_panels(mlp, 1), (x, weight, torch.zeros(32)), None, "cpu")
    assert torch.allclose(result, torch.nn.functional.gelu(x, approximate="tanh"), rtol=1e-6, atol=1e-6)
