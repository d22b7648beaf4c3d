"""Times every op that an image uses, at its real shapes: one test a call and contestant, `-k mlp` chooses an op."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.gpu_suite.contestants import REFERENCE
from benchmarks.kernels.comparison import Outcome
from benchmarks.kernels.rates import rates, times_eager
from benchmarks.kernels.replay import Replay
from benchmarks.kernels.table import Row

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

    from benchmarks.gpu_suite.calls import Call
    from benchmarks.kernels.conftest import Comparison, Session
    from benchmarks.kernels.rates import Ceilings

CLOCK = Replay()


@pytest.mark.filterwarnings("ignore:Benchmark fixture was not used")  # where nothing is timed
@pytest.mark.benchmark(timer=CLOCK.interleaved_rounds)
def test_op(comparison: Comparison, contestant: str, session: Session, benchmark: BenchmarkFixture) -> None:
    call, outcome = comparison.call, comparison.outcomes[contestant]
    whole = session.contestants[call.name][contestant].whole
    if outcome.failed:
        session.rows.append(Row(call.name, contestant, note=f"FAILED, not timed: {outcome.failed}"))
        pytest.fail(outcome.failed, pytrace=False)
    if outcome.not_run:
        session.rows.append(Row(call.name, contestant, note=f"not run: {outcome.not_run}"))
        pytest.skip(outcome.not_run)
    if not outcome.seconds:
        session.rows.append(Row(call.name, contestant, note="ok" if whole else "part, not compared"))
        return
    CLOCK.load(outcome.seconds)
    benchmark.group = call.name
    benchmark.pedantic(CLOCK.round, rounds=len(outcome.seconds))
    median, eager = statistics.median(outcome.seconds), comparison.outcomes[REFERENCE]
    info = facts(call, whole, outcome, eager, median, session.ceilings)
    benchmark.extra_info.update(info, automatic=comparison.automatic == contestant)
    session.rows.append(Row(call.name, contestant, tuple(outcome.seconds), benchmark.extra_info))


def facts(
    call: Call, whole: bool, outcome: Outcome, eager: Outcome, median: float, ceilings: Ceilings
) -> dict[str, Any]:
    """What the JSON says beside the times. A part of the op has no rates: the cost is that of the whole."""
    return {
        "op": call.op,
        "stage": call.stage,
        "batch": call.batch,
        "calls_an_image": call.count,
        "flops": call.cost.flops,
        "bytes": call.cost.bytes,
        "how": outcome.how,
        "whole_op": whole,
        **({"times_eager": times_eager(eager.seconds, outcome.seconds)} if eager.seconds else {}),
        **(rates(call.cost, median, ceilings) if whole else {}),
        "ceilings": {"flop_per_s": ceilings.flop_per_s, "bytes_per_s": ceilings.bytes_per_s},
    }
