"""Drafts: the first scales of a picture, decoded as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.engine.test_graphs import Recording
from tests.engine.test_tiling import MICRO, SIDE, engine_of, picture, same
from tests.kernels.harness import raises
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.graphs import GraphCache
from varsr_engine.engine.result import UpscaleResult
from varsr_engine.engine.scheduling import Event
from varsr_engine.errors import InvalidParamsError

SMALL, LARGE = (8, 8), (20, 13)  # of one tile, and of six
ALL = MICRO.num_scales


@pytest.fixture
def engine() -> Engine:
    return engine_of(threaded=False, batch_size=1)


@pytest.mark.parametrize("settings", [{}, {"top_k": 5, "seed": 7}])
@pytest.mark.parametrize("count", range(1, ALL))
def test_a_draft_is_the_map_of_its_last_scale_decoded(engine: Engine, count: int, settings: dict[str, Any]) -> None:
    lr = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    trace = engine.generate(lr, trace=True, **settings).trace
    draft = engine.generate(lr, stop_at_scale=count, trace=True, **settings)
    assert trace is not None and draft.trace is not None
    assert torch.equal(draft.latent, trace.f_hats[count - 1]) and torch.equal(draft.tokens, trace.tokens[count - 1])
    assert torch.equal(draft.images, engine.decode(trace.f_hats[count - 1]))
    assert len(draft.trace.f_hats) == count and draft.trace.residual is None
    assert set(draft.seconds) == {"condition", "decoder", *(f"scale.{k}" for k in range(count))}


def test_all_scales_are_no_draft(engine: Engine) -> None:
    lr = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    assert torch.equal(engine.generate(lr, stop_at_scale=ALL).images, engine.generate(lr).images)
    result = engine.upscale(picture(*SMALL), stop_at_scale=ALL)
    assert same(result, engine.upscale(picture(*SMALL))) and "refiner" in result.seconds
    assert result.stop_at_scale is None and "stop_at_scale" not in result.stats()


@pytest.mark.parametrize("tile", ["auto", "published"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_every_way_to_a_result_gives_the_same_draft(
    engine: Engine, size: tuple[int, int], tile: str, tmp_path: Path
) -> None:
    source, settings = picture(*size), {"stop_at_scale": 2, "tile": tile}
    draft = engine.upscale(source, **settings)
    assert draft.stop_at_scale == draft.stats()["stop_at_scale"] == 2
    assert "refiner" not in draft.seconds and "scale.2" not in draft.seconds
    assert not same(draft, engine.upscale(source, tile=tile, refiner="off"))
    assert same(draft, engine.submit(source, **settings).result())
    (many,) = engine.upscale_many([source], **settings)
    assert isinstance(many, UpscaleResult) and same(draft, many)
    assert all(same(draft, sample) for sample in engine.upscale_samples(source, [1, 2], **settings))
    report, _ = engine.upscale_to(source, tmp_path / "draft.png", **settings)
    assert report.stop_at_scale == 2
    with Image.open(tmp_path / "draft.png") as image:
        assert np.array_equal(np.asarray(image), draft.array)
    events = [event for event in engine.stream(source, **settings) if isinstance(event, Event)]
    tile_stages = ["condition", "scale.0", "scale.1"]
    assert [event.stage for event in events] == tile_stages * draft.tiles + (["decoder"] if draft.tiles == 1 else [])


def test_stages(engine: Engine) -> None:
    from varsr_engine.engine.params import UpscaleParams

    assert engine.stages(UpscaleParams(stop_at_scale=1)) == ["condition", "scale.0", "decoder"]
    assert engine.stages(UpscaleParams(stop_at_scale=ALL)) == engine.stages(UpscaleParams())
    assert engine.stages(UpscaleParams(refiner="off"))[-2:] == [f"scale.{ALL - 1}", "decoder"]


def test_drafts_share_no_batch_with_others() -> None:
    engine = engine_of(threaded=False, batch_size=4)
    handles = [engine.submit(picture(*SMALL), stop_at_scale=n) for n in (2, None, 2, ALL, 3)]
    results = [handle.result() for handle in handles]
    assert engine.stats().batch_sizes == {2: 2, 1: 1}
    assert same(results[0], results[2]) and same(results[1], results[3]) and not same(results[0], results[4])


def test_drafts_have_graphs_of_their_own(engine: Engine) -> None:
    capture, lr, eager = Recording(), torch.rand(1, 3, SIDE, SIDE) * 2 - 1, engine_of()
    plain = [eager.generate(lr, stop_at_scale=n).images for n in (None, 1, 2)]
    engine._pipeline._graphs, engine._pipeline._largest_graph = GraphCache(capture), 1
    for _ in range(2):
        for count, images in zip((None, 1, 2), plain, strict=True):
            heard: list[str] = []
            graphed = engine.generate(lr, stop_at_scale=count, on_stage=heard.append).images
            torch.testing.assert_close(graphed, images, rtol=0, atol=1e-5)
            assert heard == engine._pipeline.stages(True, True, count)
    assert capture.captured == [1, 1, 1]


def test_drafts_say_nothing_of_the_pace(engine: Engine) -> None:
    engine.upscale(picture(*SMALL))
    before = engine._pipeline.pace.tile
    engine.upscale(picture(*SMALL), stop_at_scale=1)
    assert engine._pipeline.pace.tile == before
    engine.upscale(picture(*SMALL))
    assert engine._pipeline.pace.tile != before


@pytest.mark.parametrize("value", [ALL + 1, 100])
def test_more_scales_than_the_model_has_are_refused(engine: Engine, value: int) -> None:
    message = f"stop_at_scale must be a number of scales in [1, {ALL}] for this model, {ALL} being all, got {value}"
    with raises(InvalidParamsError, message):
        engine.upscale(picture(*SMALL), stop_at_scale=value)
    with raises(InvalidParamsError, message):
        engine.submit(picture(*LARGE), stop_at_scale=value)
    with raises(InvalidParamsError, message):
        engine.generate(torch.zeros(1, 3, SIDE, SIDE), stop_at_scale=value)


@pytest.mark.parametrize("value", [0, -1, 1.0, "2", True])
def test_what_is_no_number_of_scales_is_refused(engine: Engine, value: Any) -> None:
    with raises(InvalidParamsError, f"stop_at_scale must be a number of scales, an integer >= 1, got {value!r}"):
        engine.upscale(picture(*SMALL), stop_at_scale=value)
