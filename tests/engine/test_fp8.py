"""The FP8 mode: what it computes, where it is switched on, what it holds, and where it refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.forcing import forced_tokens
from tests.engine.conftest import Loaded, write_case
from tests.golden_cases import GOLDEN_FOLDER, load_case
from tests.interpreter import exact_e4m3
from tests.kernels.harness import DEVICE, raises
from tests.numerics import relative_error
from varsr_engine.checkpoint import open_checkpoint
from varsr_engine.dispatch import use_backend
from varsr_engine.engine.device import check_fp8
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.params import EngineConfig
from varsr_engine.engine.quantization import Fp8Switches, parse_indices
from varsr_engine.engine.request import batch_request
from varsr_engine.engine.weights import BlockWeights, Reader, load_transformer
from varsr_engine.errors import InvalidParamsError, KernelUnavailableError
from varsr_engine.kernels import triton_backend
from varsr_engine.kernels.quantized import E4M3, QuantizedWeight, quantize_weight
from varsr_engine.model.varsr import Trace

CPU = torch.device("cpu")
WAY_OUT = "use quantization none, or backend torch, which emulates it slowly, to measure what it costs in quality"
# What the order of float32 sums may change, beside what FP8 changes: of two roundings to e4m3 a few fall apart.
SHARE = 0.01 if triton_backend.INTERPRETING else 0.1  # a GPU's sums of 128 terms have 22 bits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(load_case(GOLDEN_FOLDER, "tiny"), tmp_path_factory.mktemp("fp8") / "tiny")


@pytest.fixture(scope="module")
def traces(folder: Path) -> Callable[..., Trace]:
    """traces(backend="torch", **switches): an engine's scales on golden tiny, each with the exact network's tokens."""
    case = load_case(GOLDEN_FOLDER, "tiny")

    @cache
    def run(backend: str = "torch", **switches: str) -> Trace:
        device = CPU if backend == "torch" else DEVICE
        engine = Engine.from_pretrained(folder, device=device.type, dtype="fp32", backend=backend, **switches)
        golden, trace = [case.tensors[f"tokens.{k}"].to(device) for k in range(case.config.num_scales)], Trace()
        settings: dict[str, Any] = {"labels": case.labels, "guidance_scale": case.guidance_scale, "seeds": 0}
        request = batch_request(case.config, case.batch, device, **settings, top_k=1, top_p=None, temperature=1.0)
        with exact_e4m3(), forced_tokens(engine, golden), use_backend(backend), torch.inference_mode():
            engine._pipeline._scale_loop.run(case.tensors["prefix"].to(device), request, lambda *scale: None, trace)
        return trace

    return run


@pytest.mark.slow  # a minute in Triton's interpreter
def test_the_kernels_compute_what_the_emulation_computes(traces: Callable[..., Trace]) -> None:
    exact, emulated, kernels = traces(), traces(quantization="fp8"), traces("triton", quantization="fp8")
    for step, (a, b, c) in enumerate(zip(exact.logits, emulated.logits, kernels.logits, strict=True)):
        change = relative_error(b, a)
        assert change > 0.001, f"step {step} is not quantized"
        assert relative_error(c, b) <= SHARE * change, f"step {step}: {relative_error(c, b):.2e}, FP8 {change:.2e}"


def test_steps_are_switched_one_by_one(traces: Callable[..., Trace]) -> None:
    """Step 0's cache is what the later steps attend to: so they differ a little where only step 0 is quantized."""
    exact, everywhere = traces(), traces(quantization="fp8")
    first, rest = (traces(quantization="fp8", fp8_steps=steps) for steps in ("0", "1-5"))
    assert torch.equal(first.logits[0], everywhere.logits[0])
    assert torch.equal(rest.logits[0], exact.logits[0])
    assert not torch.equal(rest.logits[1], exact.logits[1])
    assert relative_error(first.logits[-1], exact.logits[-1]) < relative_error(everywhere.logits[-1], exact.logits[-1])


def test_layers_are_switched_one_by_one(traces: Callable[..., Trace]) -> None:
    exact, one, everywhere = traces(), traces(quantization="fp8", fp8_layers="1"), traces(quantization="fp8")
    assert 0 < relative_error(one.logits[0], exact.logits[0]) < relative_error(everywhere.logits[0], exact.logits[0])


def test_no_layer_twice_unless_steps_differ(folder: Path) -> None:
    def blocks(**switches: str) -> tuple[list[BlockWeights], list[BlockWeights]]:
        engine = Engine.from_pretrained(folder, device="cpu", backend="torch", quantization="fp8", **switches)
        weights = engine._pipeline._scale_loop.weights
        return weights.blocks, weights.fp8_blocks

    def quantized(block: BlockWeights) -> list[bool]:
        linears = (block.qkv, block.fc1, block.fc2, block.proj)
        return [isinstance(linear.weight, QuantizedWeight) for linear in linears]

    plain, fp8 = blocks(fp8_layers="1")
    assert all(a is b for a, b in zip(plain, fp8, strict=True))
    assert quantized(plain[1]) == [True, True, True, False] and not any(quantized(plain[0]))
    plain, fp8 = blocks(fp8_layers="1", fp8_steps="1-5")
    assert plain[0] is fp8[0] and plain[1].proj is fp8[1].proj
    assert not any(quantized(plain[1])) and quantized(fp8[1]) == [True, True, True, False]


def test_weights_are_quantized_from_the_file_s_values(folder: Path) -> None:
    """Not through the compute dtype: float16 first would round twice."""
    checkpoint = open_checkpoint(folder)
    everywhere = Fp8Switches(frozenset({0, 1}), frozenset(range(checkpoint.config.num_scales)))
    weights = load_transformer(Reader(checkpoint, CPU, torch.float16), fp8=everywhere)
    expected = quantize_weight(checkpoint.open()("transformer.blocks.1.ffn.fc1.weight").float())
    linear = weights.fp8_blocks[1].fc1
    assert isinstance(linear.weight, QuantizedWeight) and linear.weight.values.dtype == E4M3
    assert torch.equal(linear.weight.values.view(torch.uint8), expected.values.view(torch.uint8))
    assert torch.equal(linear.weight.scale, expected.scale)
    assert linear.bias.dtype == torch.float16


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("auto", "a CPU has no FP8 products"),
        ("cpu", "backend cpu has no FP8 kernels"),
        ("cuda", "backend cuda has no FP8 kernels"),
    ],
)
def test_a_cpu_refuses(folder: Path, backend: str, reason: str) -> None:
    with raises(KernelUnavailableError, f"quantization fp8 cannot run here: {reason}; {WAY_OUT}"):
        Engine.from_pretrained(folder, device="cpu", backend=backend, quantization="fp8")


def test_older_gpus_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("meta")
    reason = "the device has compute capability 8.6, FP8 needs 8.9 (Ada, Hopper or newer)"
    with triton_backend.assume_capability(8, 6):
        with raises(KernelUnavailableError, f"quantization fp8 cannot run here: {reason}; {WAY_OUT}"):
            check_fp8(gpu)
        with use_backend("torch"):
            check_fp8(gpu)
    with triton_backend.assume_capability(8, 9):
        check_fp8(gpu)
    monkeypatch.setattr(triton_backend, "_installed", lambda: False)
    with raises(KernelUnavailableError, f"quantization fp8 cannot run here: triton is not installed; {WAY_OUT}"):
        check_fp8(gpu)


def test_settings(monkeypatch: pytest.MonkeyPatch, load_engine: Callable[..., Loaded]) -> None:
    model = load_engine("tiny")[0].config
    assert EngineConfig().fp8_switches(model) is None
    assert EngineConfig(fp8_layers="0").fp8_switches(model) is None  # not switched on
    monkeypatch.setenv("VARSR_QUANTIZATION", "fp8")
    monkeypatch.setenv("VARSR_FP8_STEPS", "1-5")
    switches = EngineConfig.resolve(fp8_layers="1").fp8_switches(model)
    assert switches == Fp8Switches(frozenset({1}), frozenset(range(1, 6)))
    monkeypatch.undo()
    with raises(InvalidParamsError, "quantization must be none or fp8, got 'int8'"):
        EngineConfig(quantization="int8")
    with raises(InvalidParamsError, "fp8_steps must be indices from 0 to 5 for this model, got '2-6'"):
        EngineConfig(quantization="fp8", fp8_steps="2-6").fp8_switches(model)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("all", range(12)), ("5", [5]), ("0,5-9", [0, 5, 6, 7, 8, 9]), (" 1 , 3 - 3,3", [1, 3]), ("0-11", range(12))],
)
def test_indices(text: str, expected: Any) -> None:
    assert parse_indices("fp8_layers", text, 12) == set(expected)
    parse_indices("fp8_layers", text)


@pytest.mark.parametrize("text", ["none", "", "1,", "-1", "3-1", "1-2-3", "1.5", "0:4", "٣"])
def test_bad_indices(text: str) -> None:
    with raises(InvalidParamsError, f"fp8_layers must be all, or indices and ranges such as 0,5-9, got {text!r}"):
        parse_indices("fp8_layers", text)
