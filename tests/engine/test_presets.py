"""Faster by choice: guidance in the first scales only, and presets."""

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
from tests.numerics import relative_error
from varsr_engine.config import ModelConfig
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.graphs import GraphCache
from varsr_engine.engine.params import UpscaleParams
from varsr_engine.engine.presets import PRESETS, with_preset
from varsr_engine.errors import InvalidParamsError

SMALL, LARGE = (8, 8), (20, 13)  # of one tile, and of six
ALL = MICRO.num_scales


@pytest.fixture
def engine() -> Engine:
    return engine_of(threaded=False, batch_size=1)


def inputs(batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, SIDE, SIDE) * 2 - 1


# --- guided scales ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"top_k": 5, "seed": 7}, {"guidance_scale": [0.5, 3.0]}])
def test_all_scales_guided_is_the_same_to_the_bit(engine: Engine, settings: dict[str, Any]) -> None:
    lr = inputs()
    plain, all_guided = engine.generate(lr, **settings), engine.generate(lr, guided_scales=ALL, **settings)
    assert torch.equal(plain.images, all_guided.images)
    assert not torch.equal(plain.images, engine.generate(lr, guided_scales=ALL - 1, **settings).images)


@pytest.mark.parametrize("settings", [{}, {"top_k": 5, "seed": 7}])
def test_no_scale_guided_is_guidance_of_strength_0(engine: Engine, settings: dict[str, Any]) -> None:
    lr = inputs()
    off = engine.generate(lr, guidance_scale=0, trace=True, **settings)
    none = engine.generate(lr, guided_scales=0, trace=True, **settings)
    assert off.trace is not None and none.trace is not None
    assert all(torch.equal(a, b) for a, b in zip(off.trace.tokens, none.trace.tokens, strict=True))
    assert relative_error(none.images, off.images) < 1e-5
    assert off.trace.z is not None and none.trace.z is not None and len(none.trace.z) == len(off.trace.z) // 2
    first = engine.generate(lr, guided_scales=1, **settings)  # whose ratio is 0
    assert torch.equal(first.images, none.images)


@pytest.mark.parametrize("guided", range(1, ALL))
def test_the_others_run_as_with_strength_0(engine: Engine, guided: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against ratios of 0 in the last scales and the refiner, where all rows are carried along."""
    lr, cfg = inputs(), [1.5, 4.0]
    fewer = engine.generate(lr, guidance_scale=cfg, guided_scales=guided, trace=True)
    true_ratio = ModelConfig.guidance_ratio
    ratio = lambda self, step: true_ratio(self, step) if step < guided else 0.0  # noqa: E731
    monkeypatch.setattr(ModelConfig, "guidance_ratio", ratio)
    other = engine_of().generate(lr, guidance_scale=cfg, trace=True)
    assert fewer.trace is not None and other.trace is not None
    assert all(torch.equal(a, b) for a, b in zip(fewer.trace.tokens, other.trace.tokens, strict=True))
    assert relative_error(fewer.images, other.images) < 1e-5


def test_unguided_scales_have_half_the_rows(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, rows = engine._pipeline._scale_loop, list[int]()
    sample = loop._sample

    def count(x: torch.Tensor, *args: Any) -> torch.Tensor:
        rows.append(len(x))
        return sample(x, *args)

    monkeypatch.setattr(loop, "_sample", count)
    engine.generate(inputs(), guided_scales=2)
    assert rows == [4, 4, 2, 2]


def test_several_seeds_and_invariant_batches() -> None:
    lr, settings = inputs(), {"guided_scales": 2, "seed": [1, 2, 3, 4], "num_images_per_input": 2, "trace": True}
    shared, single = (
        engine_of().generate(lr, **settings),
        engine_of(numerics="batch_invariant").generate(lr, **settings),
    )
    assert relative_error(single.images, shared.images) < 1e-5
    assert shared.trace is not None and single.trace is not None and shared.trace.z is not None
    assert single.trace.z is not None and single.trace.z.shape == shared.trace.z.shape
    assert relative_error(single.trace.z, shared.trace.z) < 1e-5


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_every_way_to_a_result_gives_the_same(engine: Engine, size: tuple[int, int], tmp_path: Path) -> None:
    source, settings = picture(*size), {"guided_scales": 2, "steps": 3}
    result = engine.upscale(source, **settings)
    assert not same(result, engine.upscale(source, steps=3))
    assert same(result, engine.submit(source, **settings).result())
    assert all(same(result, many) for many in engine.upscale_many([source], **settings))  # type: ignore[arg-type]
    engine.upscale_to(source, tmp_path / "out.png", **settings)
    with Image.open(tmp_path / "out.png") as image:
        assert np.array_equal(np.asarray(image), result.array)


def test_they_share_no_batch_with_others() -> None:
    engine = engine_of(threaded=False, batch_size=8)
    handles = [engine.submit(picture(*SMALL), guided_scales=n) for n in (0, None, 1, ALL, 2, 0)]
    for handle in handles:
        handle.result()
    assert engine.stats().batch_sizes == {3: 1, 2: 1, 1: 1}  # 0 and 1 are the same, as are all and None


def test_they_have_graphs_of_their_own(engine: Engine) -> None:
    capture, lr, eager = Recording(), inputs(1), engine_of()
    plain = [eager.generate(lr, guided_scales=n).images for n in (None, 0, 2)]
    engine._pipeline._graphs, engine._pipeline._largest_graph = GraphCache(capture), 1
    for _ in range(2):
        for count, images in zip((None, 0, 2), plain, strict=True):
            graphed = engine.generate(lr, guided_scales=count).images
            torch.testing.assert_close(graphed, images, rtol=0, atol=1e-5)
    assert capture.captured == [1, 1, 1]


def test_drafts(engine: Engine) -> None:
    lr = inputs()
    assert torch.equal(
        engine.generate(lr, stop_at_scale=2, guided_scales=2).images, engine.generate(lr, stop_at_scale=2).images
    )
    assert not torch.equal(
        engine.generate(lr, stop_at_scale=3, guided_scales=0).images, engine.generate(lr, stop_at_scale=3).images
    )


def test_what_is_refused(engine: Engine) -> None:
    message = f"guided_scales must be a number of scales in [0, {ALL}] for this model, {ALL} being all, got {ALL + 1}"
    for call in (engine.upscale, engine.submit):
        with raises(InvalidParamsError, message):
            call(picture(*SMALL), guided_scales=ALL + 1)
    with raises(InvalidParamsError, message):
        engine.generate(inputs(), guided_scales=ALL + 1)
    for value in (-1, 1.0, "2", True):
        with raises(InvalidParamsError, f"guided_scales must be a number of scales, an integer >= 0, got {value!r}"):
            engine.upscale(picture(*SMALL), guided_scales=value)


# --- presets ---------------------------------------------------------------------------------------------------------


def test_quality_is_the_default_and_changes_nothing(engine: Engine) -> None:
    assert UpscaleParams().preset == "quality" and with_preset(UpscaleParams(), MICRO) == UpscaleParams()
    assert same(engine.upscale(picture(*SMALL)), engine.upscale(picture(*SMALL), preset="quality"))


@pytest.mark.parametrize("name", ["balanced", "fast"])
def test_a_preset_is_its_settings(engine: Engine, name: str) -> None:
    preset, source = PRESETS[name], picture(*LARGE)
    params = with_preset(UpscaleParams().replace(preset=name), MICRO)
    assert params.steps == preset.steps
    assert params.guided_scales == (ALL - preset.unguided if preset.unguided else None)
    result = engine.upscale(source, preset=name)
    assert same(result, engine.upscale(source, steps=params.steps, guided_scales=params.guided_scales))
    assert same(result, engine.submit(source, preset=name).result())
    assert not same(result, engine.upscale(source))


@pytest.mark.parametrize("name", ["balanced", "fast"])
def test_explicit_settings_override_a_preset(engine: Engine, name: str) -> None:
    params = UpscaleParams().replace(preset=name, steps=10, guided_scales=ALL)
    assert with_preset(params, MICRO) == params
    assert same(engine.upscale(picture(*SMALL), params), engine.upscale(picture(*SMALL)))


def test_presets_fit_any_model() -> None:
    few = ModelConfig(patch_nums=(1, 4), depth=1, embed_dim=64, num_heads=1, refiner_steps=2)
    params = with_preset(UpscaleParams(preset="fast"), few)
    assert params.steps == 2 and params.guided_scales == max(0, 2 - PRESETS["fast"].unguided)


def test_presets_do_less_work(engine: Engine) -> None:
    """In the order of their names' promise: no more refiner steps, and no more guided scales, than the one before."""
    quality, balanced, fast = (PRESETS[name] for name in ("quality", "balanced", "fast"))
    assert MICRO.refiner_steps > (balanced.steps or 0) >= (fast.steps or 0) > 0
    assert quality.unguided <= balanced.unguided <= fast.unguided
    assert balanced != fast


def test_an_unknown_preset() -> None:
    with raises(InvalidParamsError, "preset must be one of ('quality', 'balanced', 'fast'), got 'turbo'"):
        UpscaleParams().replace(preset="turbo")
