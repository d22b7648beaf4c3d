"""What is told before an image runs: tiles and windows exactly, seconds and bytes about."""

from __future__ import annotations

import pytest

from tests.engine.test_tiling import engine_of, picture
from tests.live_bytes import LiveBytes
from varsr_engine.engine.decoding import window_shape
from varsr_engine.engine.memory import RESERVE
from varsr_engine.engine.planning import UpscalePlan


def test_tiles_are_those_that_run() -> None:
    engine = engine_of()
    for size, changes in (((8, 8), {}), ((20, 13), {}), ((20, 13), {"tile": "off"}), ((30, 5), {"scale": 2.5})):
        plan, result = engine.plan(size, **changes), engine.upscale(picture(*size), **changes)
        assert (plan.tiles, plan.size) == (result.tiles, result.size)
        assert plan.batch == min(plan.tiles, engine.largest_batch)


def test_seconds_come_from_what_ran() -> None:
    engine = engine_of()
    assert engine.plan((20, 13)).seconds is None
    engine.upscale(picture(8, 8))
    one, many = engine.plan((8, 8)).seconds, engine.plan((40, 40)).seconds
    assert one is not None and many is not None and 0 < one < many
    assert many == pytest.approx(engine.plan((40, 40)).tiles * one, rel=0.5)


def test_memory_covers_what_lives() -> None:
    """The plan's peak less the weights against every tensor that the engine makes for an image."""
    engine = engine_of(batch_size=2)
    engine.upscale(picture(8, 8))
    plan = engine.plan((30, 22))
    with LiveBytes("cpu") as live:
        engine.upscale(picture(30, 22))
    own = plan.peak_bytes - plan.weight_bytes
    assert 0.4 * live.peak <= own <= 3 * live.peak


def test_a_budget_bounds_batches_and_windows() -> None:
    free, config = engine_of(), engine_of().model_config
    budget = free.memory_plan(2).peak + RESERVE
    bounded = engine_of(memory_budget=budget)
    assert free.largest_batch == 8 and bounded.largest_batch == 2
    tight = engine_of(memory_budget=1024 * 1024)
    assert tight.largest_batch == 1 and tight._pipeline.window_shape(100) < window_shape(config, 100, 4)
    source = picture(30, 20)
    plan: UpscalePlan = tight.plan((30, 20))
    assert plan.batch == 1 and plan.peak_bytes < free.plan((30, 20)).peak_bytes
    assert tight.upscale(source).size == free.upscale(source).size
