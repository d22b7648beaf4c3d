"""The fingerprint of an engine's numerics: the same for the same arithmetic, another where any of it differs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import varsr_engine
from tests.engine.test_tiling import MICRO, WEIGHTS, engine_of, picture
from varsr_engine.checkpoint import TensorCheckpoint
from varsr_engine.engine import fingerprint as module
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.fingerprint import SAMPLE, SAMPLES, kernels_digest, weights_digest
from varsr_engine.engine.params import EngineConfig


def test_the_same_engine_has_the_same() -> None:
    first, second = engine_of(), engine_of()
    assert first.fingerprint == second.fingerprint == first.fingerprint
    assert re.fullmatch(r"fast-cpu-fp32-[0-9a-f]{12}", first.fingerprint)
    assert engine_of(batch_size=3, threaded=False).fingerprint == first.fingerprint


def test_results_carry_it() -> None:
    engine = engine_of(numerics="batch_invariant", threaded=False)
    results = [engine.upscale(picture(8, 8)), engine.upscale(picture(20, 13)), engine.submit(picture(8, 8)).result()]
    for result in results:
        assert result.numerics == result.stats()["numerics"] == engine.fingerprint
        assert result.numerics.startswith("batch_invariant-cpu-fp32-")


@pytest.mark.parametrize(
    "settings",
    [{"numerics": "batch_invariant"}, {"backend": "torch"}, {"quantization": "fp8", "backend": "torch"}],
    ids=str,
)
def test_settings_that_change_the_arithmetic_change_it(settings: dict[str, Any]) -> None:
    other = engine_of(**{"backend": "cpu"} if settings == {"backend": "torch"} else {}).fingerprint
    assert engine_of(**settings).fingerprint != other


@pytest.mark.parametrize("what", ["dtype", "version", "kernels", "threads", "device"])
def test_so_does_what_computes_them(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def told(dtype: torch.dtype = torch.float32) -> str:
        return module.fingerprint(EngineConfig(), torch.device("cpu"), dtype, None, "weights")

    before = told()
    if what == "dtype":
        assert told(torch.bfloat16).startswith("fast-cpu-bf16-")
        assert told(torch.bfloat16).rpartition("-")[2] != before.rpartition("-")[2]
        return
    if what == "version":
        monkeypatch.setattr(varsr_engine, "__version__", "999.0")
    elif what == "kernels":
        monkeypatch.setattr(module, "kernels_digest", lambda kind: "other")
    elif what == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    else:
        monkeypatch.setattr(module, "processor", lambda: "another")
    assert told() != before
    monkeypatch.undo()
    assert told() == before


def test_weights_by_names_shapes_dtypes_and_a_sample() -> None:
    def digest(**changes: torch.Tensor) -> str:
        return weights_digest(TensorCheckpoint({**WEIGHTS, **changes}, MICRO, "micro"))

    name = max(WEIGHTS, key=lambda n: WEIGHTS[n].numel())
    large = WEIGHTS[name]
    assert large.numel() > SAMPLES * SAMPLE
    assert digest() == digest() == digest(**{name: large.clone()})
    seen = {digest(), digest(**{name: large.half()}), digest(**{name: large * 1.001})}
    for place in (0, -1):  # the ends are a part of the sample
        changed = large.clone()
        changed.view(-1)[place] += 1
        seen.add(digest(**{name: changed}))
    small = min((n for n in WEIGHTS if WEIGHTS[n].numel() > 1), key=lambda n: WEIGHTS[n].numel())
    changed = WEIGHTS[small].clone()
    changed.view(-1)[WEIGHTS[small].numel() // 2] += 1
    seen.add(digest(**{small: changed}))
    assert len(seen) == 6


def test_it_is_that_of_the_weights_that_were_loaded() -> None:
    """Not of what lies in their place when it is asked for."""
    tensors = {name: tensor.clone() for name, tensor in WEIGHTS.items()}
    engine = Engine(TensorCheckpoint(tensors, MICRO, "micro"), EngineConfig(device="cpu"))
    before = engine.fingerprint
    for tensor in tensors.values():
        tensor.zero_()
    assert engine.fingerprint == before


def test_kernels_are_the_sources_and_the_libraries() -> None:
    assert re.fullmatch("[0-9a-f]{64}", kernels_digest("cpu"))
    assert kernels_digest("cpu") != kernels_digest("cuda")
