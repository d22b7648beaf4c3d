"""Memory told before it is taken, and errors that name what would fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from varsr_engine import Engine
from varsr_engine.config import ModelConfig
from varsr_engine.engine import tensors
from varsr_engine.engine.memory import RESERVE, available_bytes, largest_batch, memory_plan, weight_bytes
from varsr_engine.engine.quantization import Fp8Switches
from varsr_engine.errors import KernelUnavailableError, ResourceExhaustedError


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained("varsr-mini", device="cpu")


def test_the_plan_grows_with_the_batch(engine: Engine) -> None:
    one, three = engine.memory_plan(1), engine.memory_plan(3)
    assert one.weights == three.weights
    assert all(three.stages[stage] == pytest.approx(3 * one.stages[stage], rel=1e-3) for stage in one.stages)
    assert one.peak == one.weights + max(one.stages.values())


def test_fp8_weights() -> None:
    """Alone they take half; switched by step they come on top."""
    config, dtype = ModelConfig.varsr_d24(), torch.float16
    quantized = 24 * 11 * 1536**2
    everywhere, last = (Fp8Switches(frozenset(range(24)), frozenset(steps)) for steps in (range(10), (9,)))
    plain = weight_bytes(config, {}, dtype)
    assert weight_bytes(config, {}, dtype, everywhere) == plain - quantized
    assert weight_bytes(config, {}, dtype, last) == plain + quantized


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_the_largest_batch_fits_just_so(engine: Engine, batch: int) -> None:
    config, shapes, dtype = engine.model_config, engine._shapes, torch.float32
    needed = memory_plan(config, shapes, batch, dtype).peak + RESERVE
    assert largest_batch(config, shapes, dtype, needed) == batch
    if batch > 0:
        assert largest_batch(config, shapes, dtype, needed - 1) == batch - 1


def test_this_machine_tells(engine: Engine) -> None:
    available = available_bytes(torch.device("cpu"))
    assert available is None or available > 0


def out_of_memory(*args: Any, **kwargs: Any) -> Any:
    raise torch.OutOfMemoryError("allocating failed")


@pytest.mark.parametrize(
    ("available", "advice"),
    [(lambda e: e.memory_plan(2).peak + RESERVE, "batch_size 2 fits"), (lambda e: 1, "free some"), (None, "lower")],
    ids=["two", "none", "unknown"],
)
def test_the_error_names_the_batch_that_fits(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, available: Any, advice: str
) -> None:
    monkeypatch.setattr(tensors, "available_bytes", lambda device: None if available is None else available(engine))
    monkeypatch.setattr(engine._pipeline, "generate", out_of_memory)
    side = engine.model_config.image_side
    with pytest.raises(ResourceExhaustedError, match=advice) as caught:
        engine.generate(torch.zeros(4, 3, side, side))
    assert "a batch of 4" in str(caught.value)


def test_what_cannot_fit_is_refused_beforehand(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "available_bytes", lambda device: engine.memory_plan(2).peak + RESERVE)
    engine._require_memory(2)
    with pytest.raises(ResourceExhaustedError, match="batch_size 2 fits"):
        engine._require_memory(3)


def test_attention_is_chosen_by_itself() -> None:
    """Only attention follows `attention`; a library that cannot run here says so."""
    lr = torch.zeros(1, 3, 128, 128)
    plain = Engine.from_pretrained("varsr-mini", device="cpu").generate(lr)
    assert torch.allclose(
        Engine.from_pretrained("varsr-mini", device="cpu", attention="torch").generate(lr).images,
        plain.images,
        atol=1e-4,
    )
    with pytest.raises(KernelUnavailableError, match="scale_attention: backend 'cudnn' cannot run this call"):
        Engine.from_pretrained("varsr-mini", device="cpu", attention="cudnn").generate(lr)


def test_a_small_gpu_gets_small_graphs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a batch size, graphs are captured up to what the GPU holds."""
    monkeypatch.setattr(engine, "device", torch.device("cuda"))
    for fits, expected in ((0, 1), (3, 3), (50, 8)):
        monkeypatch.setattr(tensors, "available_bytes", lambda device, n=fits: engine.memory_plan(n).peak + RESERVE)
        assert engine._choose_batch() == expected
