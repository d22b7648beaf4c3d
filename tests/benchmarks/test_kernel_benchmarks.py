"""The benchmarks of kernels: what they are collected from, that a wrong result is not timed, and their figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_suite.calls import Call
from benchmarks.gpu_suite.contestants import REFERENCE
from benchmarks.kernels.calls import config_of, image_calls, representatives
from benchmarks.kernels.comparison import compare
from benchmarks.kernels.contestants import COMPILED, SLOW_TO_COMPILE, Contestant, contestants, why_not_compiled
from benchmarks.kernels.rates import Ceilings, rates, times_eager
from benchmarks.kernels.replay import Replay
from benchmarks.kernels.table import Row, lines
from varsr_engine.dispatch import OPS
from varsr_engine.kernels.spec import Cost

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def calls() -> dict[str, Call]:
    return image_calls(config_of("toy"), [1], torch.float32, every=False)


@pytest.fixture(scope="module")
def adaln(calls: dict[str, Call]) -> Call:
    return next(call for call in calls.values() if call.op == "adaln")


def reference(call: Call) -> Contestant:
    return contestants(call, CPU)[REFERENCE]


def test_every_op_of_an_image_is_there_with_all_its_backends(calls: dict[str, Call]) -> None:
    of_an_image = set(OPS) - {"block_causal_attention"}  # which training uses
    assert {call.op for call in calls.values()} == of_an_image
    for call in calls.values():
        names = list(contestants(call, CPU))
        assert names[0] == REFERENCE and COMPILED in names
        assert ("cpu" in names) == ("cpu" in OPS[call.op].backends)
        assert not {"triton", "cuda"} & set(names)  # the interpreter is no contestant


def test_a_gpu_has_the_kernels_for_gpus(adaln: Call) -> None:
    assert list(contestants(adaln, torch.device("cuda"))) == [REFERENCE, "cuda", "triton", COMPILED]


def test_three_calls_stand_for_all(adaln: Call, calls: dict[str, Call]) -> None:
    every = image_calls(config_of("toy"), [1], torch.float32, every=True)
    own = [call for call in every.values() if call.op == "adaln"]
    assert [c.name for c in representatives(own)] == [own[0].name, own[len(own) // 2].name, own[-1].name]
    assert representatives(own[:1]) == own[:1] and set(calls) < set(every)


def test_a_wrong_result_fails_and_is_not_timed(adaln: Call) -> None:
    right = reference(adaln)
    wrong = Contestant("wrong", lambda args: right.run(args).mul_(1.001))
    outcomes = compare(adaln, {REFERENCE: right, "wrong": wrong}, CPU, rounds=5, most_seconds=0.1)
    assert len(outcomes[REFERENCE].seconds) == 5 and not outcomes[REFERENCE].failed
    assert "error" in outcomes["wrong"].failed and outcomes["wrong"].seconds == []


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "a library's"])
def test_an_error_is_a_failure_of_our_code_alone(adaln: Call, ours: bool) -> None:
    def refuse(args: Any) -> Any:
        raise RuntimeError("planted")

    contestant = Contestant("it", refuse, ours=ours)
    outcome = compare(adaln, {REFERENCE: reference(adaln), "it": contestant}, CPU, 5, 0.1)["it"]
    message = "RuntimeError: planted"
    assert (outcome.failed, outcome.not_run) == ((message, "") if ours else ("", message))


def test_a_part_of_an_op_is_timed_and_not_compared(adaln: Call) -> None:
    part = Contestant("part", lambda args: args[0].mean(), whole=False)
    outcome = compare(adaln, {REFERENCE: reference(adaln), "part": part}, CPU, 5, 0.1)["part"]
    assert len(outcome.seconds) == 5 and outcome.how == "wall clock"


def test_compiling_for_a_cpu_asks_for_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no no-such-compiler" in str(why_not_compiled("adaln", CPU))
    assert why_not_compiled("adaln", torch.device("cuda")) is None
    assert set(OPS) >= set(SLOW_TO_COMPILE)


def test_rates_come_from_the_cost_model() -> None:
    found = rates(Cost(flops=4_000_000, bytes=6_000_000), 2e-3, Ceilings(flop_per_s=8e9, bytes_per_s=4e9))
    assert found["gb_per_s"] == pytest.approx(6_000_000 / 2e-3 / 1e9)
    assert found["tflop_per_s"] == pytest.approx(4_000_000 / 2e-3 / 1e12)
    assert (found["limit"], found["of_ceiling"]) == ("traffic", pytest.approx(0.75))
    assert times_eager([2.0, 4.0, 6.0], [1.0, 1.0, 1.0])["median"] == 4.0


def test_a_clock_plays_rounds_back() -> None:
    clock, played = Replay(), []
    clock.load([0.25, 0.5])
    for _ in range(2):
        before = clock.interleaved_rounds()
        clock.round()
        played.append(clock.interleaved_rounds() - before)
    assert played == [0.25, 0.5]


def test_the_table_names_what_was_not_timed() -> None:
    rows = [Row("call", "a", note="FAILED, not timed: why"), Row("call", "b", note="not run: no GPU")]
    text = "\n".join(lines(rows, {"call": "a"}))
    assert "a *" in text and "FAILED, not timed: why" in text and "not run: no GPU" in text


def test_a_run_of_pytest(tmp_path: Path) -> None:
    """One op: its tests by name, the JSON with its figures, and the table."""
    pytest.importorskip("pytest_benchmark")
    result = tmp_path / "kernels.json"
    chosen = ["--model", "toy", "--rounds", "5", "-k", f"groupnorm_silu and not {COMPILED}"]
    quietly = ["--benchmark-quiet", "--benchmark-json", str(result), "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "benchmarks/kernels", "--device", "cpu", "--dtype", "fp32", *chosen]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "TRITON_"))}
    done = subprocess.run(
        [*command, *quietly], cwd=ROOT, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "x eager" in done.stdout and "large copy" in done.stdout
    written = json.loads(result.read_text())
    assert written["machine_info"]["varsr_engine"]["model"] == "toy"
    for found in written["benchmarks"]:
        info, times = found["extra_info"], found["stats"]
        assert info["op"] == "groupnorm_silu" and found["options"]["timer"] == "interleaved_rounds"
        assert info["gb_per_s"] == pytest.approx(info["bytes"] / times["median"] / 1e9)
        assert times["rounds"] == 5 and info["times_eager"]["n"] == 5
    assert {found["params"]["contestant"] for found in written["benchmarks"]} >= {REFERENCE}
