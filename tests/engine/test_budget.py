"""Memory budgets that are kept, and batches that did not fit run again in halves."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.test_tiling import engine_of, picture, same
from tests.kernels.harness import raises
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.fitting import run_in_parts
from varsr_engine.engine.generation import Pipeline
from varsr_engine.engine.memory import RESERVE, largest_batch, memory_plan, part_bytes, weight_bytes
from varsr_engine.errors import ResourceExhaustedError

SMALL, LARGE = (8, 8), (40, 26)
PARTS = ("_condition", "_refiner", "_decoder")


@pytest.fixture(scope="module")
def free() -> Engine:
    return engine_of(threaded=False)


def plan_of(engine: Engine, batch: int, offload: bool) -> Any:
    return memory_plan(engine.model_config, engine._shapes, batch, engine.dtype, None, offload)


def tight_budget(engine: Engine) -> int:
    """One tile fits if the parts take turns, and not otherwise."""
    return plan_of(engine, 1, True).peak + RESERVE


# --- parts that rest are not kept ------------------------------------------------------------------------------------


def test_the_plan_of_parts_that_take_turns(free: Engine) -> None:
    kept, offloaded = plan_of(free, 3, False), plan_of(free, 3, True)
    parts = part_bytes(free._shapes, free.dtype)
    assert set(parts) == {"condition", "refiner", "decoder"} and all(size > 0 for size in parts.values())
    assert offloaded.weights == kept.weights - sum(parts.values()) > 0
    for stage, size in kept.stages.items():
        assert offloaded.stages[stage] == size + parts.get(stage, 0)
    assert offloaded.kv_cache == kept.kv_cache and offloaded.peak < kept.peak
    assert kept.weights == weight_bytes(free.model_config, free._shapes, free.dtype)


def loads(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often each part is loaded from now on."""
    counts = dict.fromkeys(PARTS, 0)
    for name in PARTS:
        part = getattr(engine._pipeline, name)

        def load(name: str = name, load: Any = part._load) -> Any:
            counts[name] += 1
            return load()

        monkeypatch.setattr(part, "_load", load)
    return counts


def test_a_tight_budget_loads_parts_for_each_use(free: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    tight = engine_of(threaded=False, memory_budget=tight_budget(free))
    assert tight.offloads and tight.largest_batch == 1
    counts = loads(tight, monkeypatch)
    for n in (1, 2):
        assert same(tight.upscale(picture(*SMALL)), free.upscale(picture(*SMALL)))
        assert counts == dict.fromkeys(PARTS, n)
        assert all(getattr(tight._pipeline, name)._value is None for name in PARTS)


def test_a_budget_that_suffices_keeps_them(free: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    enough = engine_of(memory_budget=plan_of(free, 1, False).peak + RESERVE)
    assert not enough.offloads and enough.largest_batch == 1
    counts = loads(enough, monkeypatch)
    enough.upscale(picture(*SMALL))
    enough.upscale(picture(*SMALL))
    assert counts == dict.fromkeys(PARTS, 1)
    assert engine_of(memory_budget=enough.config.memory_budget - 1).offloads  # type: ignore[operator]


def test_offloading_leaves_room_for_larger_batches(free: Engine) -> None:
    budget = plan_of(free, 1, False).peak + RESERVE - 1
    tight = engine_of(memory_budget=budget)
    fits = largest_batch(free.model_config, free._shapes, free.dtype, budget, None, True)
    assert tight.offloads and tight.largest_batch == min(8, fits) and tight.memory_plan(fits).peak + RESERVE <= budget


def test_offloaded_parts_are_in_no_graph(free: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's engine, built on a stand-in, asks for no graphs."""
    asked: dict[str, Any] = {}
    init = Pipeline.__init__

    def record(self: Pipeline, *args: Any, **settings: Any) -> None:
        asked.update(settings)
        init(self, *args, **settings)

    monkeypatch.setattr(Pipeline, "__init__", record)
    tight = engine_of(memory_budget=tight_budget(free))
    assert asked["offload"] and asked["largest_graph"] is None
    monkeypatch.setattr(tight, "device", torch.device("cuda"))
    assert not tight.captures_graphs
    engine_of(memory_budget=plan_of(free, 1, False).peak + RESERVE)
    assert not asked["offload"] and asked["largest_graph"] == 1
    with raises(ValueError, "parts that come and go cannot be in a graph"):
        Pipeline(None, free.device, free.dtype, offload=True, largest_graph=1)  # type: ignore[arg-type]


def test_less_than_one_tile_takes_is_said(free: Engine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="varsr_engine"):
        engine_of(memory_budget=tight_budget(free))
        assert not caplog.records
        tight = engine_of(memory_budget=tight_budget(free) - 1)
    (record,) = caplog.records
    assert record.getMessage().startswith("memory_budget is 0.50 GiB, but one tile of this model takes about 0.50 GiB")
    assert tight.largest_batch == 1


def test_a_budget_bounds_a_batch_size_that_was_asked_for(free: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    bounded = engine_of(batch_size=6, memory_budget=plan_of(free, 2, False).peak + RESERVE, threaded=False)
    assert bounded.largest_batch == 2
    batches = generated(bounded, monkeypatch)
    list(bounded.upscale_many([picture(*SMALL, seed=n) for n in range(5)]))
    assert batches == [1, 2, 2]
    batches.clear()
    bounded.upscale_samples(picture(*SMALL), [1, 2, 3, 4])
    assert batches == [2, 2]


# --- out of memory ---------------------------------------------------------------------------------------------------


def generated(engine: Engine, monkeypatch: pytest.MonkeyPatch, fits: int = 1000) -> list[int]:
    """The batches that an engine tries from now on; those larger than `fits` run out of memory."""
    batches: list[int] = []
    sample = engine._pipeline.sample

    def run(lr: Any, request: Any, *, seeds: torch.Tensor, **settings: Any) -> Any:
        batches.append(len(seeds))
        if len(seeds) > fits:
            raise torch.OutOfMemoryError("allocating failed")
        return sample(lr, request, seeds=seeds, **settings)

    monkeypatch.setattr(engine._pipeline, "sample", run)
    return batches


@pytest.mark.parametrize("how", ["upscale", "upscale_to"])
def test_tiles_run_again_in_halves(free: Engine, how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source, engine = picture(*LARGE), engine_of(batch_size=8)
    expected = free.upscale(source)
    tiles, reclaimed, heard = expected.tiles, list[int](), list[tuple[int, int]]()
    assert tiles > 8
    batches = generated(engine, monkeypatch, fits=3)
    monkeypatch.setattr(engine, "reclaim", lambda: reclaimed.append(len(batches)))
    on_tiles = lambda done, of: heard.append((done, of))  # noqa: E731
    if how == "upscale":
        result = engine.upscale(source, on_tiles=on_tiles)
        assert abs(result.picture.rgb - expected.picture.rgb).max() < 1e-4
    else:
        engine.upscale_to(source, tmp_path / "out.png", on_tiles=on_tiles)
    failed, done = batches[: len(reclaimed)], batches[len(reclaimed) :]
    assert all(size > 3 for size in failed) and all(size <= 3 for size in done)  # it does not grow again
    assert all(b == a // 2 for a, b in zip(failed, [*failed[1:], max(done)], strict=True))
    assert sum(done) == tiles and reclaimed == list(range(1, len(failed) + 1))
    assert heard == [(sum(done[:n]), tiles) for n in range(len(done) + 1)]


def test_pictures_and_seeds_run_again_in_halves(free: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [picture(*SMALL, seed=n) for n in range(4)]
    expected = [free.upscale(source) for source in sources]
    engine = engine_of(batch_size=4)
    batches = generated(engine, monkeypatch, fits=1)
    results = list(engine.upscale_many(sources))
    assert batches == [4, 2, 1, 1, 1, 1]
    for result, alone in zip(results, expected, strict=True):
        assert abs(result.picture.rgb - alone.picture.rgb).max() < 1e-4  # type: ignore[union-attr]
    batches.clear()
    samples = engine.upscale_samples(sources[0], [5, 6, 7])
    assert batches == [3, 1, 1, 1] and [s.seed for s in samples] == [5, 6, 7]
    for sample in samples:
        assert abs(sample.picture.rgb - free.upscale(sources[0], seed=sample.seed).picture.rgb).max() < 1e-4


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_one_that_does_not_fit_is_an_error(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(batch_size=4)
    batches = generated(engine, monkeypatch, fits=0)
    with pytest.raises(ResourceExhaustedError, match="not enough memory for a batch of 1"):
        engine.upscale(picture(*size))
    assert batches == ([4, 2, 1] if size == LARGE else [1])


def test_other_errors_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[tuple[int, int]]()

    def run(start: int, end: int) -> None:
        calls.append((start, end))
        raise RuntimeError("no")

    with raises(RuntimeError, "no"):
        list(run_in_parts(run, 8, 8, lambda: None))
    assert calls == [(0, 8)]


@given(st.integers(0, 60), st.integers(1, 12), st.integers(1, 12))
def test_every_item_runs_once(count: int, most: int, fits: int) -> None:
    def run(start: int, end: int) -> range:
        if end - start > fits:
            raise MemoryError
        return range(start, end)

    parts = list(run_in_parts(run, count, most, lambda: None))
    assert [n for *_, done in parts for n in done] == list(range(count))
    sizes = [end - start for start, end, _ in parts]
    assert all(size <= min(most, fits) for size in sizes)
    if most <= fits and count:
        assert max(sizes) - min(sizes) <= 1 and len(sizes) == -(-count // most)


def test_what_failed_is_free_before_it_runs_again() -> None:
    """A batch's tensors, which the error's frames hold, are gone when memory is reclaimed."""
    import weakref

    refs: list[weakref.ref[torch.Tensor]] = []

    def run(start: int, end: int) -> int:
        big = torch.zeros(end - start)
        refs.append(weakref.ref(big))
        if end - start > 1:
            raise torch.OutOfMemoryError("allocating failed")
        return start

    alive: list[bool] = []
    list(run_in_parts(run, 2, 2, lambda: alive.append(refs[-1]() is not None)))
    assert alive == [False]
