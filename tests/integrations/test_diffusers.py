"""The diffusers pipeline, on a stub of diffusers' base class, and on diffusers itself where it is installed."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.engine.test_tiling import picture
from varsr_engine.engine.engine import Engine
from varsr_engine.errors import InvalidParamsError, UnsupportedFormatError

MODULE = "varsr_engine.integrations.diffusers"


class StubBar:
    def __init__(self, total: int) -> None:
        self.total = total

    def __enter__(self) -> StubBar:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, count: int) -> None:
        self.total -= count
        assert self.total >= 0


class StubPipeline:
    """What diffusers.DiffusionPipeline gives the facade."""

    def register_to_config(self, **values: Any) -> None:
        self.config = values

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> StubBar:
        assert total is not None
        return StubBar(total)


@pytest.fixture(params=["stub", pytest.param("diffusers", marks=pytest.mark.slow)])
def module(request: pytest.FixtureRequest, stub_modules: Callable[..., ModuleType]) -> Iterator[Any]:
    """The facade on one of its hosts, imported anew."""
    if request.param == "stub":
        stub_modules("diffusers", DiffusionPipeline=StubPipeline)
        stub_modules("diffusers.utils", BaseOutput=object)
    else:
        pytest.importorskip("diffusers")
    sys.modules.pop(MODULE, None)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE, None)


@pytest.fixture
def pipeline(module: Any, micro: Engine) -> Any:
    return module.VarsrPipeline(micro)


def same(a: Image.Image, b: Image.Image) -> bool:
    """The same to one step of 8 bits: batches differ in the last bits."""
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max()) <= 1


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_an_image_is_the_engines(pipeline: Any, micro: Engine) -> None:
    image = picture(8, 8)
    output = pipeline(image, generator=generator(7))
    expected = micro.upscale(image, seed=7)
    assert same(output.images[0], expected.image) and output.seeds == [7]
    assert pipeline.device == micro.device and pipeline.dtype == micro.dtype


def test_output_types(pipeline: Any, micro: Engine) -> None:
    images, expected = [picture(8, 8), picture(8, 8)], micro.upscale(picture(8, 8))
    arrays, seeds = pipeline(images, generator=[generator(0)] * 2, output_type="np", return_dict=False)
    assert arrays.shape == (2, 32, 32, 3) and arrays.dtype == np.float32 and seeds == [0, 0]
    tensors = pipeline(images, generator=[generator(0)] * 2, output_type="pt").images
    assert tensors.shape == (2, 3, 32, 32)
    assert torch.allclose(tensors[0], expected.tensor, atol=1e-5)
    assert np.array_equal(arrays[0], tensors[0].permute(1, 2, 0).numpy())
    mixed = pipeline([picture(8, 8), picture(4, 8)], output_type="pt").images
    assert [tuple(t.shape) for t in mixed] == [(3, 32, 32), (3, 32, 16)]


def test_batches_are_lists_of_images(pipeline: Any) -> None:
    batch = torch.stack([torch.full((3, 8, 8), 0.25), torch.full((3, 8, 8), 0.75)])
    tensors = pipeline(batch, generator=[generator(1), generator(1)], output_type="pt").images
    alone = pipeline(batch[1], generator=generator(1), output_type="pt").images
    assert torch.allclose(tensors[1], alone[0], atol=1e-5)


def test_one_generator_gives_seeds_that_follow(pipeline: Any) -> None:
    output = pipeline(picture(8, 8), generator=generator(5), num_images_per_prompt=3)
    assert output.seeds == [5, 6, 7]
    assert not same(output.images[0], output.images[1])
    again = pipeline(picture(8, 8), generator=generator(6))
    assert same(again.images[0], output.images[1])
    assert len(set(pipeline(picture(8, 8), num_images_per_prompt=2).seeds)) == 2  # drawn


def test_alpha_and_gray_are_kept(pipeline: Any) -> None:
    images = [Image.new("RGBA", (8, 8), (9, 9, 9, 99)), Image.new("L", (8, 8), 7)]
    assert [image.mode for image in pipeline(images).images] == ["RGBA", "L"]


def test_steps_are_told_with_previews(pipeline: Any, micro: Engine) -> None:
    seen: list[tuple[int, int, Any]] = []

    def on_step(own: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        assert own is pipeline
        seen.append((step, timestep, tensors["preview"]))
        return tensors

    pipeline(
        picture(8, 8), callback_on_step_end=on_step, callback_on_step_end_tensor_inputs=["preview"], preview_max_side=16
    )
    stages = micro.stages(micro.params_of(None, {}))
    assert [step for step, _, _ in seen] == list(range(len(stages)))
    shown = [preview for _, _, preview in seen if preview is not None]
    assert len(shown) > micro.model_config.num_scales
    assert all(p.shape == (3, 16, 16) and p.min() >= 0 and p.max() <= 1 for p in shown)


def test_a_callback_interrupts_its_own_call(pipeline: Any) -> None:
    def on_step(own: Any, step: int, timestep: int, tensors: dict[str, Any]) -> None:
        own._interrupt = True
        assert own._interrupt

    results: dict[str, Any] = {}
    other = threading.Thread(target=lambda: results.update(other=pipeline(picture(8, 8))))
    other.start()
    results["own"] = pipeline([picture(8, 8)] * 2, callback_on_step_end=on_step)
    other.join(60)
    assert results["own"].images == [] and results["own"].seeds == []
    assert len(results["other"].images) == 1
    assert not pipeline._interrupt


def test_another_thread_interrupts_all_calls(pipeline: Any) -> None:
    def on_step(own: Any, step: int, timestep: int, tensors: dict[str, Any]) -> None:
        button = threading.Thread(target=lambda: setattr(own, "_interrupt", True))
        button.start()
        button.join()

    assert pipeline(picture(8, 8), callback_on_step_end=on_step).images == []


def test_threads_get_their_own_images(pipeline: Any, micro: Engine) -> None:
    expected = {seed: micro.upscale(picture(8, 8), seed=seed).tensor for seed in range(4)}
    got: dict[int, Any] = {}

    def call(seed: int) -> None:
        got[seed] = pipeline(picture(8, 8), generator=generator(seed), output_type="pt").images[0]

    threads = [threading.Thread(target=call, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(torch.allclose(got[seed], expected[seed], atol=1e-4) for seed in expected)


def test_parameters(pipeline: Any, micro: Engine) -> None:
    output = pipeline(picture(8, 8), 2, generator(0), num_inference_steps=2, guidance_scale=0.0, color_fix="none")
    expected = micro.upscale(picture(8, 8), scale=2, steps=2, cfg=0.0, color_fix="none")
    assert same(output.images[0], expected.image)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output_type": "latent"}, "output_type must be one of pil, np, pt"),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, "callback_on_step_end_tensor_inputs must be in"),
        ({"generator": [torch.Generator()] * 3}, "generator must be one, or one for each of 1 images, got 3"),
        ({"scael": 2}, "scale"),
    ],
)
def test_bad_arguments(pipeline: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParamsError, match=message):
        pipeline(picture(8, 8), **settings)


def test_a_bad_image_of_several_cancels_the_others(pipeline: Any, micro: Engine) -> None:
    with pytest.raises(UnsupportedFormatError):
        pipeline([picture(8, 8), b"no image"])
    assert micro.stats().queued_units == 0


def test_loads_moves_and_saves(module: Any, tmp_path: Path) -> None:
    pipeline = module.VarsrPipeline.from_pretrained("varsr-mini", torch_dtype=torch.float32, device="cpu")
    engine = pipeline.engine
    assert pipeline.to("cpu") is pipeline.to(torch.float32) is pipeline.to(device="cpu") is pipeline
    assert pipeline.engine is engine  # it was there
    with pytest.raises(InvalidParamsError, match="needs a CUDA device"):
        pipeline.to(torch.float16)
    pipeline.save_pretrained(tmp_path / "model")
    again = module.VarsrPipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert again.engine.model_config == engine.model_config
    with pytest.raises(InvalidParamsError, match="torch_dtype must be one of"):
        module.VarsrPipeline.from_pretrained("varsr-mini", torch_dtype=torch.int8)
    with pytest.raises(InvalidParamsError, match="cannot move a pipeline made from an engine"):
        module.VarsrPipeline(engine).to(torch.bfloat16)


@pytest.mark.slow
def test_the_host_takes_it_for_a_pipeline(micro: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    diffusers = pytest.importorskip("diffusers")
    pipeline = importlib.import_module(MODULE).VarsrPipeline(micro)
    assert isinstance(pipeline, diffusers.DiffusionPipeline)
    assert "micro" in repr(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(picture(8, 8))
    assert output["images"] is output.images and output[0] is output.images
    assert capsys.readouterr().err == ""
    pipeline.maybe_free_model_hooks()
    pipeline.set_progress_bar_config()
    pipeline(picture(8, 8))
    assert "1/1" in capsys.readouterr().err
