"""varsr convert, info, selftest and bench."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import files_in, the_json
from varsr_engine.commands import memory, selftest
from varsr_engine.commands.info import memory_needs, part_sizes
from varsr_engine.commands.selftest_cases import missing_cases
from varsr_engine.config import ModelConfig
from varsr_engine.dispatch import OPS
from varsr_engine.engine.memory import RESERVE
from varsr_engine.model.shapes import state_shapes

CPU = torch.device("cpu")


# --- convert ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "dtype"), [((), torch.float32), (("--dtype", "fp16"), torch.float16)])
def test_convert(run, model, options, dtype) -> None:
    result = run("convert", model, "new", *options)
    assert result.exit_code == 0, result.stderr
    assert files_in("new") == ["config.json", "model.safetensors"]
    before, after = (load_file(Path(folder, "model.safetensors")) for folder in (model, "new"))
    assert all(torch.equal(before[name].to(dtype), after[name]) for name in before)
    assert "MB, was" in result.stderr


def test_convert_fits_a_preview_map(run, model) -> None:
    result = run("convert", model, "new", "--fit-preview")
    assert result.exit_code == 0, result.stderr
    assert "of the variance of decoded colours" in result.stderr
    before, after = (load_file(Path(folder, "model.safetensors")) for folder in (model, "new"))
    assert after.keys() - before.keys() == {"preview.weight", "preview.bias"}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert run("convert", model, "new", "--fit-preview").exit_code == 1  # before a fit that takes its time


def test_convert_refuses(run, model) -> None:
    assert run("convert", model, "new").exit_code == 0
    assert run("convert", model, "new").exit_code == 1
    assert run("convert", model, "new", "--overwrite", "--precision", "bf16").exit_code == 0
    assert run("convert", model, "other", "--dtype", "int8").exit_code == 2
    result = run("convert", "no/model", "other")
    assert result.exit_code == 78 and "Traceback" not in result.stderr
    assert not Path("other").exists()


# --- info ------------------------------------------------------------------------------------------------


def test_info(run, model) -> None:
    text = run("info", model).stdout
    for expected in (torch.__version__, "scale_attention", "not on a CUDA device", "condition encoder", "embed_dim"):
        assert expected in text
    assert run("info", "no/model").exit_code == 78


def test_info_without_a_model_describes_the_packaged_one(run, model, packaged, monkeypatch) -> None:
    text = run("info").stdout
    assert "varsr-mini.safetensors: F16" in text and "licence: Apache-2.0" in text
    report = the_json(run("info", "--json"))["model"]
    assert report["about"] == {"name": "stand-in", "licence": "Apache-2.0"}
    assert "encoder, for training only" not in report["parameters"]
    monkeypatch.setenv("VARSR_MODEL", model)
    assert the_json(run("info", "--json"))["model"]["dtypes"] == ["F32"]


def test_info_as_json(run, model) -> None:
    report = the_json(run("info", model, "--json"))
    on_cpu = {entry["op"]: entry for entry in report["ops"] if entry["device"] == "cpu"}
    assert set(on_cpu) == set(OPS)
    assert "products: " in report["devices"]["cpu"]
    assert on_cpu["mlp"]["backend"] in ("cpu", "torch") and on_cpu["mlp"]["why_not"]["cuda"]
    parameters = report["model"]["parameters"]
    assert sum(parameters.values()) == 2 * parameters["total"]
    assert report["model"]["dtypes"] == ["F32"]


def test_memory_of_the_published_model() -> None:
    config = ModelConfig.varsr_d24()
    checkpoint: Any = SimpleNamespace(config=config, shapes=state_shapes(config))
    assert 340e6 < part_sizes(checkpoint)["adaLN, folded away"] < 350e6
    needs = memory_needs(checkpoint, torch.float16)
    tokens = 1024 + 1 + sum(p * p for p in config.patch_nums[1:])
    assert needs["kv_cache_per_image"] == 24 * 2 * 2 * tokens * 1536 * 2
    assert needs["weights"] <= 1.6 * 1024**3


def test_info_memory(run, model, monkeypatch: pytest.MonkeyPatch) -> None:
    report = the_json(run("info", model, "--memory", "--json"))
    assert report["dtype"] == "fp16" and [p["batch"] for p in report["plans"]] == [1, 2, 4, 8]
    for plan in report["plans"]:
        assert plan["peak"] == plan["weights"] + max(plan["stages"].values())
        assert plan["kv_cache"] < plan["stages"]["scales"]
    whole = the_json(run("info", model, "--memory", "--json", "--dtype", "fp32"))
    assert whole["plans"][0]["kv_cache"] == 2 * report["plans"][0]["kv_cache"]
    table = run("info", model, "--memory")
    assert table.exit_code == 0 and "no GPU is here" in table.output
    assert "dtype must be one of" in run("info", model, "--memory", "--dtype", "fp8").output
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(memory, "available_bytes", lambda device: report["plans"][2]["peak"] + RESERVE)
    assert the_json(run("info", model, "--memory", "--json"))["gpus"][0]["largest_batch"] == 4


# --- selftest --------------------------------------------------------------------------------------------


def test_selftest_passes(run) -> None:
    result = run("selftest", "--json", "-g", "cpu")
    report = the_json(result)
    failures = [check for check in report["checks"] if check["status"] == "FAILED"]
    assert result.exit_code == 0 and report["passed"] and not failures, failures
    assert {check["name"].split(".")[0] for check in report["checks"]} >= set(OPS)
    assert "all tokens equal" in report["checks"][-1]["note"]


def test_every_op_has_a_case() -> None:
    assert missing_cases() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_references_pass_in_every_dtype(dtype: torch.dtype) -> None:
    with torch.inference_mode():
        assert [c for c in selftest.op_checks(CPU, dtype, backends=["torch"]) if c.status != "ok"] == []


def add_backend(monkeypatch: pytest.MonkeyPatch, op: str, implementation: Any, why_not: Any = lambda *a: None) -> None:
    monkeypatch.setitem(OPS[op]._impls, "cuda", implementation)
    monkeypatch.setitem(OPS[op]._why_not, "cuda", why_not)


def checks_of(op: str) -> dict[str, selftest.Check]:
    with torch.inference_mode():
        return {check.backend: check for check in selftest.op_checks(CPU, torch.float32, [op])}


def broken(op: str, spoil: Any) -> Any:
    reference = OPS[op]._impls["torch"]

    def implementation(*args: Any) -> Any:
        return spoil(reference(*args), args)

    return implementation


FAULTS = {
    "mlp": lambda result, args: result.mul_(1.00001),
    "scale_attention": lambda result, args: result.index_fill(0, torch.tensor([0]), torch.nan),
    "guided_sample": lambda result, args: (result[0].roll(1), result[1]),
    "scale_handoff": lambda result, args: (args[3].add_(1e-5), result)[1],  # f_hat, written in place
    "qkv_norm_rope_cache": lambda result, args: (args[6].add_(1e-5), result)[1],  # the key cache
}


@pytest.mark.parametrize("op", FAULTS)
def test_selftest_finds_faults(monkeypatch, op: str) -> None:
    add_backend(monkeypatch, op, broken(op, FAULTS[op]))
    found = checks_of(op)
    assert (found["cuda"].status, found["torch"].status) == ("FAILED", "ok")


def test_selftest_reports_what_cannot_run_or_crashes(monkeypatch) -> None:
    add_backend(monkeypatch, "mlp", None, lambda *a: "needs a GPU")
    assert (checks_of("mlp")["cuda"].status, checks_of("mlp")["cuda"].note) == ("not run", "needs a GPU")
    add_backend(monkeypatch, "adaln", lambda *a: 1 / 0)
    assert "ZeroDivisionError" in checks_of("adaln")["cuda"].note


def test_selftest_exit_code_and_table(run, monkeypatch) -> None:
    failed = selftest.Check("mlp", "torch", "FAILED", float("inf"), "[wrong]")
    checks = [failed, selftest.Check("adaln", "torch", "ok", 0.1)]
    monkeypatch.setattr(selftest, "all_checks", lambda device, dtype: iter(checks))
    result = run("selftest", "-g", "cpu")
    assert result.exit_code == 1 and "1 of 2 checks failed" in result.stdout and "[wrong]" in result.stdout
    assert the_json(run("selftest", "-g", "cpu", "--json"))["checks"][0]["error"] is None
    assert run("selftest", "--dtype", "int4").exit_code == 2


# --- bench -----------------------------------------------------------------------------------------------


def test_bench(run, model) -> None:
    result = run("bench", "-n", model, "--repeat", 2, "-b", 2, "--json", "-g", "cpu")
    assert result.exit_code == 0, result.stderr
    import json

    report = json.loads(result.stdout.splitlines()[-1])
    seconds = report["seconds"]
    assert {"condition", "scale.0", "refiner", "decoder"} <= set(seconds["stages"])
    assert 0 < seconds["total"]["min"] <= seconds["total"]["median"] <= seconds["total"]["max"]
    assert sum(stage["min"] for stage in seconds["stages"].values()) <= seconds["total"]["max"]
    assert report["images_per_second"] > 0 and report["peak_bytes"] > 1e7 and report["gemm_flops"] > 1e8
    assert "decoder" in result.stdout
    assert run("bench", "-n", "no/model").exit_code == 78
