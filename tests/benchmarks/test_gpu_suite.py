"""The GPU suite without a GPU: its dry run, its deadline, what a failure costs, and the documents made from results."""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import tables as documents
from benchmarks.gpu_suite import (
    baselines,
    ceilings,
    checks,
    contestants,
    engine_times,
    op_times,
    parity,
    profile,
    session,
    tables,
    targets,
    timing,
)
from benchmarks.gpu_suite.__main__ import chosen_parts, main
from benchmarks.gpu_suite.calls import SHAPES, Call, every_call, in_dtype, record_all, record_image
from benchmarks.gpu_suite.costs import COSTS
from benchmarks.gpu_suite.report import gpu_folder
from benchmarks.gpu_suite.session import NAMES, PARTS, Part, PartResult, Session, time_limit
from benchmarks.gpu_suite.settings import Settings
from benchmarks.gpu_suite.values import real_arguments
from benchmarks.gpu_suite.work import Clock, Item
from benchmarks.gpu_suite.worker import own_share, run_item
from tests.benchmarks.test_gpu_suite_parts import NAME
from varsr_engine.config import ModelConfig
from varsr_engine.dispatch import OPS, Op
from varsr_engine.engine import scale_loop
from varsr_engine.engine.cost import stage_costs
from varsr_engine.kernels.triton_backend import INTERPRETING

DRY, CPU = Settings.dry(), torch.device("cpu")


def one(items: list[Item], name: str, settings: Settings = DRY) -> dict[str, Any]:
    """The result of the item of that name."""
    return run_item(next(item for item in items if item.name == name), settings)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from several, and lose much where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- what is measured --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    return every_call(DRY.config, 1, torch.float16, fp8=False)


@pytest.fixture(scope="module")
def fp8_calls() -> list[Call]:
    return record_image(DRY.config, 1, torch.float16, fp8=True)


def test_every_op_of_the_dispatcher_is_among_the_calls(calls: list[Call]) -> None:
    assert {call.op for call in calls} == set(OPS) == set(SHAPES) == set(COSTS)
    twice = [name for name, count in Counter(call.name for call in calls).items() if count > 1]
    assert twice == []


def test_calls_are_those_that_the_engine_makes() -> None:
    """A recorded image has the ops, shapes and numbers of calls of an engine that computes one."""
    from benchmarks.gpu_suite.model import RandomCheckpoint, engine_config, load_engine, random_input

    engine = load_engine(RandomCheckpoint(DRY.config, CPU), engine_config(CPU, "fp32", backend="torch"))
    seen: Counter[tuple[str, Any]] = Counter()
    run = Op.__call__

    def note(op: Op, *args: Any, **kwargs: Any) -> Any:
        seen[op.name, tuple(tuple(t.shape) for t in args if isinstance(t, torch.Tensor))] += 1
        return run(op, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Op, "__call__", note)
        engine.generate(random_input(DRY.config, 1, CPU))
    recorded: Counter[tuple[str, Any]] = Counter()
    for call in record_image(DRY.config, 1, torch.float32):
        shapes = tuple(tuple(t.shape) for t in call.args if isinstance(t, torch.Tensor))
        recorded[call.op, shapes] += call.count
    ours, theirs = ({k[0] for k in counts} for counts in (recorded, seen))
    assert ours == theirs
    for op in ("qkv_norm_rope_cache", "scale_attention", "gated_residual", "guided_sample", "refiner_update"):
        assert {k: n for k, n in recorded.items() if k[0] == op and n} == {k: n for k, n in seen.items() if k[0] == op}


def test_few_layers_tell_how_often_all_layers_call() -> None:
    config = replace(DRY.config, depth=5)
    few = record_image(config, 1, torch.float32)
    all_layers = record_all(config, 1, torch.float32, True, False)
    assert {c.name: c.count for c in few} == {c.name: c.count for c in all_layers}


def test_arithmetic_of_all_calls_is_that_of_the_stages() -> None:
    """Of two layers of the published network: what attention and products take, by two ways of counting."""
    config = replace(ModelConfig.varsr_d24(), depth=2)
    calls = record_image(config, 1, torch.float16)
    mine = sum(c.cost.flops * c.count for c in calls if c.stage.startswith("scale"))
    theirs = sum(cost.flops for stage, cost in stage_costs(config, 1, 2).items() if stage.startswith("scale"))
    assert mine == theirs
    rows = {c.args[0].shape[0] * c.args[0].shape[1] for c in calls if c.op == "mlp"}
    assert rows == {2 * n for n in (1025, 1, 4, 9, 16, 36, 81, 169, 324, 576, 1024)}


def test_arguments_are_made_as_recorded(calls: list[Call]) -> None:
    for call in in_dtype(calls, torch.float16, torch.bfloat16):
        if call.op == "gated_residual":
            args = real_arguments(call, CPU)
            assert args[0] is args[5] and args[0].dtype == torch.float32  # in place, as the engine does it
            again, other = real_arguments(call, CPU), real_arguments(call, CPU, 1)
            assert torch.equal(args[1], again[1]) and not torch.equal(args[1], other[1])
        if call.op == "scale_attention":
            recorded, made = call.args[1], real_arguments(call, CPU)[1]
            assert made.stride() == recorded.stride() and made.dtype == torch.bfloat16


# --- the parts, each in this process -----------------------------------------------------------------------


def test_a_check_passes_and_a_planted_fault_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    items = checks.items(DRY, Clock(60))
    name = next(item.name for item in items if item.name.startswith("adaln scale.1") and item.name.endswith(" cpu"))
    assert 0 <= one(items, name)["error"] <= 1
    right = OPS["adaln"]._impls["cpu"]
    monkeypatch.setitem(OPS["adaln"]._impls, "cpu", lambda *args: right(*args).mul_(1.001))
    assert one(items, name)["status"] == "FAILED"


@pytest.mark.skipif(not INTERPRETING, reason="needs Triton's interpreter")
@pytest.mark.parametrize("op", ["adaln", "qkv_norm_rope_cache", "mlp", "gated_residual"])
def test_fp8_kernels_are_checked(op: str, fp8_calls: list[Call]) -> None:
    """Quantized operands and results."""
    call = next(call for call in fp8_calls if call.op == op and call.is_fp8)
    found = run_item(Item(call.name, partial(checks.check, call, "triton", DRY)), DRY)
    assert found["status"] == "ok" and found["error"] > 0, found


def test_parity_of_the_tiny_case_and_a_wrong_token(monkeypatch: pytest.MonkeyPatch) -> None:
    items = parity.items(DRY, Clock(60))
    right = one(items, "tiny fp32")
    assert right["status"] == "ok" and right["free"]["tokens"] == right["fed"]["tokens"] == 1.0
    assert right["fed"]["image_psnr"] > 100 and max(right["fed"]["logits_error"]) < 1e-5
    assert one(items, "tiny fp8")["status"] == "not run"
    sample = scale_loop.guided_sample

    def wrong(*args: Any, **kwargs: Any) -> Any:
        tokens, logits = sample(*args, **kwargs)
        return (tokens + 1) % 256, logits

    monkeypatch.setattr(scale_loop, "guided_sample", wrong)
    found = one(items, "tiny fp32")
    assert found["status"] == "FAILED" and found["fed"]["tokens"] == 0.0
    assert found["fed"]["image_psnr"] > 100 > found["free"]["image_psnr"]  # fed with golden tokens, all else is right


def test_sixteen_bits_are_held_to_plain_torch() -> None:
    def result(*errors: float) -> dict[str, Any]:
        return {way: {"tokens": 0.9, "logits_error": list(errors)} for way in ("free", "fed")}

    assert parity.judge(result(0.02, 0.01), result(0.01, 0.01), "fp16") == []
    assert len(parity.judge(result(0.03, 0.01), result(0.01, 0.01), "fp16")) == 1
    assert len(parity.judge(result(float("nan"), 0.01), result(0.01, 0.01), "fp16")) == 1
    assert len(parity.judge(result(0.0, 0.0), None, "fp32")) == 2


def test_engine_baselines_ops_and_ceilings_give_numbers() -> None:
    engine = one(engine_times.items(DRY, Clock(60)), "b2 fp32")
    assert engine["status"] == "ok" and engine["wall_s"]["n"] == 3 and engine["flops"] > 0
    rival = one(baselines.items(DRY, Clock(60)), "eager b1")
    assert rival["status"] == "ok" and rival["tokens_equal"] == 1.0 and rival["image_psnr"] > 80
    items = op_times.items(DRY, Clock(60))
    for op in ("mlp", "scale_attention", "block_causal_attention training"):
        name = [item.name for item in items if item.name.startswith(op)][-1]
        found = one(items, name)
        assert found["status"] == "ok" and found["automatic"] in found["times"] and "torch eager" in found["times"]
    assert one(ceilings.items(DRY, Clock(60)), "copy")["bytes_per_s"] > 0
    assert one(profile.items(DRY, Clock(60)), "b1 fp32")["status"] == "not run"


def test_libraries_compute_what_the_op_computes(calls: list[Call]) -> None:
    """Those that a CPU has too, where the library does the whole of it; its GELU is the exact one there."""
    whole = {"linear": "cuBLASLt, product alone", "mlp": "cuBLASLt with GELU"}
    whole |= {"upsample_conv": "enlarged, cuDNN searched"}
    for op, name in whole.items():
        call = next(c for c in in_dtype(calls, torch.float16, torch.float32) if c.op == op)
        args = real_arguments(call, CPU)
        mine, library = OPS[op](*args, backend="torch"), contestants.libraries(call)[name](args)
        torch.testing.assert_close(library.view_as(mine), mine, rtol=1e-3, atol=1e-3)
    attend = next(c for c in calls if c.op == "scale_attention")
    assert set(contestants.SDPA) <= set(contestants.libraries(attend))


# --- timing, with a GPU that is not there ------------------------------------------------------------------


class FakeGraph:
    """Runs at each replay what was called within its capture."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def capture_begin(self) -> None:
        self.captures += 1

    def capture_end(self) -> None:
        self.captures += 1

    def replay(self) -> None:
        self.replays += 1


class FakeEvent:
    def __init__(self, **options: Any) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1e3 * (end.at - self.at)


class FakeStream:
    def wait_stream(self, other: Any) -> None: ...

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *error: Any) -> None: ...


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: FakeStream())


@pytest.mark.usefixtures("fake_cuda")
def test_graphs_are_captured_after_a_warm_up_and_interleaved() -> None:
    called: list[str] = []
    gpu: Any = SimpleNamespace(type="cuda")

    def contestant(name: str) -> list[timing.Call]:
        return [lambda i=i: called.append(f"{name}{i}") for i in range(3)]  # type: ignore[misc]

    runners = {name: timing.runner(contestant(name), gpu) for name in ("a", "b")}
    assert called[:6] == ["a0", "a1", "a2"] * 2  # compiles, then is timed once to size the graph
    graph = runners["a"]
    assert isinstance(graph, timing.GraphRunner) and graph.calls % 3 == 0 and graph.calls <= timing.MOST_CALLS
    times = timing.interleave(runners, 50, gpu, most_seconds=60)
    assert times["a"]["n"] == times["b"]["n"] == 50 and times["a"]["how"] == "graph"
    assert times["a"]["q1"] <= times["a"]["median"] <= times["a"]["q3"]


@pytest.mark.usefixtures("fake_cuda")
def test_what_cannot_be_captured_is_timed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(graph: FakeGraph) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(FakeGraph, "capture_end", refuse)
    found = timing.runner([lambda: None], SimpleNamespace(type="cuda"))  # type: ignore[arg-type]
    assert found.how == "events"
    assert timing.interleave({"it": found}, 5, SimpleNamespace(type="cuda"), 60)["it"]["n"] == 5  # type: ignore[arg-type]


@pytest.mark.usefixtures("fake_cuda")
def test_stages_of_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "torch_device", CPU)
    settings = replace(DRY, device="cuda")
    found = engine_times.stages(engine_times.Held(settings), settings, "fp32", 1)
    assert list(found["stages"]) == ["condition", *(f"scale.{k}" for k in range(3)), "refiner", "decoder"]


def test_a_profiled_kernel() -> None:
    new = SimpleNamespace(key="k" * 300, count=3, self_device_time_total=5.0)
    old = SimpleNamespace(key="kernel", count=1, self_cuda_time_total=7)
    assert profile.kernel_row(new) == {"kernel": "k" * 160, "calls": 3, "us": 5.0}
    assert profile.kernel_row(old)["us"] == 7.0


# --- processes and time ------------------------------------------------------------------------------------


@pytest.fixture
def planted(tmp_path: Path) -> dict[str, PartResult]:
    """A part whose items raise, kill their process and hang, and another behind it."""
    written: list[str] = []

    def keep(results: dict[str, PartResult]) -> None:
        written.append(json.dumps({name: r.to_dict() for name, r in results.items()}))

    run = Session(DRY, 2 / 60, tmp_path, keep, say=lambda line: None)
    session_grace, session.GRACE = session.GRACE, 0.1
    try:
        results = run.run([Part(NAME, 1.0), Part("benchmarks.gpu_suite.nothing", 1e-6)])
    finally:
        session.GRACE = session_grace
    assert len(written) == 2 and "planted" in written[0]  # what the first part found was there before the second
    return results


def test_failures_and_the_deadline_cost_their_own_items(planted: dict[str, PartResult]) -> None:
    result = planted[NAME]
    status = {name: item["status"] for name, item in result.items.items()}
    assert status == {
        "fine": "ok",
        "raises": "FAILED",
        "dies": "FAILED",
        "fine after": "ok",
        "not here": "not run",
        "slow": "ok",
        "hangs": "cut",
    }
    assert result.items["fine"]["value"] == 4
    assert "planted" in result.items["raises"]["error"] and "status 9" in result.items["dies"]["error"]
    assert result.left_out == ["hangs", "never reached"]
    assert result.status == "FAILED" and result.to_dict()["cut"] == ["hangs", "never reached"]
    assert result.seconds < 6
    assert planted["benchmarks.gpu_suite.nothing"].status in ("cut", "FAILED")


def test_time_that_is_left_over_goes_to_later_parts() -> None:
    assert 20 < time_limit(PARTS[0], PARTS[1:], 480) < 60  # a cold import of torch fits
    assert time_limit(PARTS[-1], [], 100) == 100
    limits, left = [], 480.0
    for i, part in enumerate(PARTS):
        limits.append(time_limit(part, PARTS[i + 1 :], left))
        left -= limits[-1]
    assert abs(sum(limits) - 480) < 1e-6


def test_items_of_a_group_stay_together() -> None:
    items = [Item(str(i), dict, group="together" if i < 3 else "") for i in range(6)]
    shares = [[item.name for item in own_share(items, shard, 2)] for shard in range(2)]
    assert sorted(name for share in shares for name in share) == [str(i) for i in range(6)]
    assert any({"0", "1", "2"} <= set(share) for share in shares)


def test_parts_are_chosen() -> None:
    def names(*args: Any) -> list[str]:
        return [part.name for part in chosen_parts(*args)]

    assert names(None, (), False) == list(NAMES)
    assert names(("checks", "ops"), (), False) == ["machine", "compile", "checks", "ops"]
    assert names(("ops",), ("compile",), False) == ["machine", "ops"]
    assert "compile" not in names(None, (), True)


def test_a_dry_run_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", "--only", "machine", "--out", str(tmp_path), "--commit", "abc", "--minutes", "1"]) == 0
    (path,) = (tmp_path / "dry-run").glob("*-abc.json")
    content = json.loads(path.read_text())
    assert content["dry_run"] and content["finished"] and content["parts"]["machine"]["status"] == "ok"
    assert path.with_suffix(".md").read_text().startswith("# Dry run: no measurement")
    assert "0 failed" in capsys.readouterr().out
    with pytest.raises(ValueError, match="dry run is no measurement"):
        tables.newest(tmp_path)


@pytest.mark.slow
def test_a_whole_dry_run(tmp_path: Path) -> None:
    assert main(["--dry-run", "--out", str(tmp_path), "--commit", "abc", "--minutes", "4"]) == 0
    (path,) = (tmp_path / "dry-run").glob("*.json")
    parts = json.loads(path.read_text())["parts"]
    assert {name for name, part in parts.items() if part["status"] == "ok"} == {*NAMES} - {"compile"}
    assert all(part["cut"] == part["failed"] == [] for part in parts.values())


# --- documents ---------------------------------------------------------------------------------------------


def seconds(value: float) -> dict[str, Any]:
    return {"median": value, "q1": 0.9 * value, "q3": 1.1 * value, "min": 0.9 * value, "n": 50, "how": "graph"}


def part(**items: dict[str, Any]) -> dict[str, Any]:
    found = {name.replace("_", " "): {"status": "ok", **item} for name, item in items.items()}
    failed = [name for name, item in found.items() if item["status"] == "FAILED"]
    return {"status": "FAILED" if failed else "ok", "seconds": 1.0, "failed": failed, "cut": [], "items": found}


@pytest.fixture
def content() -> dict[str, Any]:
    """A result of a GPU, made up."""
    engine = {"wall_s": seconds(0.031), "replay_s": seconds(0.030), "per_image_s": 0.031, "flops": 13_000_000_000_000}
    engine |= {"peak_bytes": 3_900_000_000, "weights_bytes": 2_300_000_000}
    rival = {
        "kind": "eager",
        "batch": 1,
        "published_s": seconds(0.1),
        "engine_s": seconds(0.031),
        "ratio": seconds(3.2),
    }
    op = {"count": 24, "batch": 1, "op": "mlp", "variant": "", "flops": 38_000_000_000, "bytes": 50_000_000}
    op |= {"automatic": "triton", "times": {"triton": seconds(60e-6), "torch eager": seconds(90e-6)}}
    return {
        "suite": "gpu",
        "dry_run": False,
        "finished": True,
        "commit": "abc",
        "date": "2026-11-30",
        "time": "10:00:00",
        "seconds": 470.0,
        "minutes": 8.0,
        "settings": {"compute_dtype": "fp16"},
        "parts": {
            "machine": part(
                facts={"gpu": "NVIDIA H200", "torch": "2.11.0", "triton": "3.6.0", "cudnn": 91900},
                product_fp16={"flop_per_s": 790e12},
                copy={"bytes_per_s": 4.3e12},
            ),
            "engine": part(b1_fp16=engine),
            "baselines": part(eager_b1=rival),
            "ops": part(mlp_scale_9_b1=op),
            "checks": part(
                mlp_scale_9_b1_fp16_triton={"error": 0.4},
                adaln_scale_9_b1_fp16_triton={"status": "FAILED", "error": 3.0},
            ),
        },
    }


def test_tables_say_what_was_measured(content: dict[str, Any]) -> None:
    assert "| b1 fp16 | 31.00 (27.90 to 34.10) | 30.00 (27.00 to 33.00) | 31.00 | 53% | 3.90 | 2.30 |" in (
        tables.engine_table(content)
    )
    assert "| eager, fp16 autocast | 1 | 100.00 (90.00 to 110.00) | 31.00" in tables.baseline_table(content)
    asked = targets.table(content)
    assert "| fp16, batch 1 | 31 ms, meets ≤ 32 | ≤ 38, then 32, then 28 ms | 19.2 ms |" in asked
    assert "| over published style, eager, batch 1 | 3.2 x, meets ≥ 3 | ≥ 3 x |  |" in asked
    assert "| fp16, batch 8 | not measured |" in asked
    assert "| memory, batch 1 | 3.9 GB, meets ≤ 4 | ≤ 4 GB |  |" in asked
    row = next(line for line in tables.op_table(content).splitlines() if line.startswith("| mlp"))
    assert "triton 60.0 (54.0 to 66.0) | 633.3 | 833 | 80% | torch eager 90.0 |" in row
    assert "- FAILED checks: adaln scale 9 b1 fp16 triton: 3.0" in tables.problems(content)
    assert tables.page(content).count("\n## ") == 10


def test_a_call_that_was_found_wrong_gets_no_time(content: dict[str, Any]) -> None:
    content["parts"]["checks"]["items"]["mlp scale 9 b1 fp16 triton"]["status"] = "FAILED"
    assert "triton: FAIL" in tables.op_table(content)


def test_the_newest_result_of_each_gpu_is_shown(content: dict[str, Any], tmp_path: Path) -> None:
    older = copy.deepcopy(content)
    older["date"], older["commit"] = "2026-11-29", "old"
    for name, value in (("h200/b.json", content), ("h200/a.json", older), ("h100/a.json", older)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(value))
    (tmp_path / "quality").mkdir()
    (tmp_path / "quality" / "other.json").write_text('{"benchmark": "quality"}')
    assert sorted(c["commit"] for c in tables.newest(tmp_path)) == ["abc", "old"]
    section = tables.readme_section(tables.newest(tmp_path))
    assert "NVIDIA H200, torch 2.11.0, Triton 3.6.0, cuDNN 91900, commit abc, 2026-11-30" in section
    assert tables.docs_section(tables.newest(tmp_path)).count("### ") == 2
    assert tables.readme_section([]) == tables.docs_section([]) == tables.NOTHING


def test_documents_are_current() -> None:
    """`python -m benchmarks.tables` would change nothing."""
    text = (documents.ROOT / "README.md").read_text()
    assert documents.readme(text) == text
    assert documents.benchmarks_page() == (documents.ROOT / "docs" / "benchmarks.md").read_text()


def test_names_of_folders() -> None:
    assert gpu_folder("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"
    assert gpu_folder("NVIDIA H200") == "h200"
    assert gpu_folder("") == "unknown"
