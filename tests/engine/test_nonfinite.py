"""What is not finite in 16 bits is computed again in float32, by itself; what is not in float32 fails, by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.engine.test_batch_invariance import equal
from tests.engine.test_graphs import Recording
from tests.engine.test_tiling import MICRO, WEIGHTS, engine_of, picture, same
from tests.numerics import relative_error
from varsr_engine.checkpoint import TensorCheckpoint
from varsr_engine.engine import nonfinite, tensors
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.generation import Pipeline
from varsr_engine.engine.graphs import GraphCache
from varsr_engine.engine.latent_rows import LatentRows
from varsr_engine.engine.nonfinite import bad_rows, finite_rows, keeps_float32
from varsr_engine.engine.params import EngineConfig
from varsr_engine.errors import NumericalError

SMALL, LARGE = (8, 8), (20, 13)  # of one tile, and of six
SIDE = MICRO.image_side
FIRST_LAYER = "transformer.con_embedding.conv_in.weight"
OVERFLOW = 2.0**15  # in float16 its sums then overflow, its weights do not
Half = Callable[..., Engine]


def overflowing() -> dict[str, torch.Tensor]:
    """Weights with which bright images overflow float16, black ones (the network's 0) do not; exact in float32."""
    weights = dict(WEIGHTS)
    weights[FIRST_LAYER] = weights[FIRST_LAYER] * OVERFLOW
    return weights


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> Half:
    """half(**settings): an engine in float16, which a CPU computes, if slowly; the engine does not choose it there."""

    def make(weights: dict[str, torch.Tensor] = WEIGHTS, **settings: Any) -> Engine:
        with monkeypatch.context() as patch:
            patch.setattr(tensors, "resolve_dtype", lambda name, device: torch.float16)
            return Engine(TensorCheckpoint(weights, MICRO, "micro"), EngineConfig(device="cpu", **settings))

    return make


def lr_of(bright: list[int], batch: int) -> torch.Tensor:
    """A batch of black images, but for the bright ones."""
    lr = torch.zeros(batch, 3, SIDE, SIDE)
    lr[bright] = torch.rand(len(bright), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) / 2 + 0.5
    return lr


def exact(**settings: Any) -> Engine:
    """The same weights in float32."""
    return Engine(TensorCheckpoint(overflowing(), MICRO, "micro"), EngineConfig(device="cpu", **settings))


BLACK = torch.full((3, *SMALL), 0.5)  # as a picture; the network's 0


def bright_tiles(width: int, height: int, left: int) -> torch.Tensor:
    """A black picture (3, H, W), but for the columns from `left` on."""
    image = torch.full((3, height, width), 0.5)
    image[..., left:] = 1.0
    return image


# --- finding them -----------------------------------------------------------------------------------------------------


def test_rows_are_found() -> None:
    values = torch.zeros(5, 2, 3)
    assert bad_rows(finite_rows(values)) == []
    values[1, 0, 2], values[3, 1, 0], values[4, 1, 2] = float("nan"), float("inf"), -float("inf")
    assert bad_rows(finite_rows(values)) == bad_rows(finite_rows(values, wait=False)) == [1, 3, 4]


# --- float32: errors, by row ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numerics", ["fast", "batch_invariant"])
def test_in_float32_the_bad_rows_are_named(numerics: str) -> None:
    engine = engine_of(numerics=numerics)
    noise = torch.zeros(MICRO.refiner_steps + 1, 4, MICRO.latent_side**2, MICRO.latent_channels)
    noise[0, [0, 2]] = float("nan")
    with pytest.raises(NumericalError, match=r"NaN or infinity in fp32 for .* \[0, 2\] of") as caught:
        engine.generate(torch.zeros(4, 3, SIDE, SIDE), noise=noise)
    assert caught.value.details == {"rows": [0, 2], "dtypes": ["fp32"]}


def test_latents_of_tiles_are_looked_at_before_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of NaN fails its image and no other, in blocking calls and in the queue."""
    engine = engine_of(threaded=False, batch_size=4)
    expected = engine.upscale(picture(*LARGE))
    latent = Pipeline._latent

    def poisoned(self: Pipeline, lr: torch.Tensor, request: Any, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        made, tokens = latent(self, lr, request, *rest)
        made[(request.guidance == 9) & (request.origins[:, 0] > 0)] = float("nan")
        return made, tokens

    monkeypatch.setattr(Pipeline, "_latent", poisoned)
    with pytest.raises(NumericalError, match=r"in fp32 for .* \[0, 1, 2\] of"):
        engine.upscale(picture(*LARGE), cfg=9.0)  # six tiles in two batches: the second row's
    good, bad, small = (
        engine.submit(picture(*size), cfg=cfg) for size, cfg in ((LARGE, None), (LARGE, 9.0), (SMALL, 9.0))
    )
    assert relative_error(good.result().tensor, expected.tensor) <= 1e-5 and small.result().tiles == 1
    with pytest.raises(NumericalError):
        bad.result()


# --- 16 bits: again in float32 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("numerics", ["fast", "batch_invariant"])
def test_rows_that_overflow_are_those_of_float32(half: Half, numerics: str) -> None:
    engine = half(overflowing(), numerics=numerics)
    out = engine.generate(lr_of([1, 3], 4), seed=5)
    assert out.again == [1, 3] and out.images.isfinite().all()
    alone = exact().generate(lr_of([1, 3], 4)[[1]], seed=5)
    assert equal(out, 1, alone) and "float32" in out.seconds
    clean = engine.generate(torch.zeros(4, 3, SIDE, SIDE), seed=5)
    assert clean.again == [] and torch.equal(out.images[[0, 2]], clean.images[[0, 2]])
    assert not torch.equal(clean.images, exact().generate(torch.zeros(4, 3, SIDE, SIDE), seed=5).images)


def test_several_outputs_an_input_and_given_noise(half: Half) -> None:
    engine, lr = half(overflowing()), lr_of([1], 2)
    noise = torch.randn(
        MICRO.refiner_steps + 1,
        4,
        MICRO.latent_side**2,
        MICRO.latent_channels,
        generator=torch.Generator().manual_seed(2),
    )
    for top_k in (1, 5):
        out = engine.generate(lr, seed=[1, 2, 3, 4], num_images_per_input=2, top_k=top_k)
        given = engine.generate(lr, seed=[1, 2, 3, 4], num_images_per_input=2, top_k=top_k, noise=noise)
        assert out.again == given.again == [2, 3]
        for row, seed in ((2, 3), (3, 4)):
            assert equal(out, row, exact().generate(lr[1:], seed=seed, top_k=top_k))
            assert equal(given, row, exact().generate(lr[1:], seed=seed, top_k=top_k, noise=noise[:, row : row + 1]))


def test_by_graph_too(half: Half) -> None:
    engine = half(overflowing())
    engine._pipeline._graphs, engine._pipeline._largest_graph = GraphCache(Recording()), 4
    out = engine.generate(lr_of([2], 3), seed=5)
    assert out.again == [2] and equal(out, 2, exact().generate(lr_of([2], 3)[[2]], seed=5))
    plain = half(overflowing()).generate(lr_of([2], 3), seed=5)
    assert equal(out, 2, exact().generate(lr_of([2], 3)[[2]], seed=5)) and plain.again == [2]
    result = engine.upscale(bright_tiles(20, 8, 12))
    assert result.tiles == 3 and result.warnings == exact_warnings("tile 2", "tile 3")


def exact_warnings(*what: str) -> tuple[str, ...]:
    return tuple(f"{each} gave NaN in fp16 and was run again in fp32" for each in what)


def test_results_say_so_blocking_and_queued(half: Half) -> None:
    engine = half(overflowing(), threaded=False, batch_size=2)
    bright, wide = torch.ones(3, *SMALL), bright_tiles(20, 8, 12)
    for options in ({}, {"tile": "published"}):
        cases = [(bright, ("the image",)), (BLACK, ()), (wide, ("tile 2", "tile 3"))]
        handles = [engine.submit(image, **options) for image, _ in cases]
        for (image, what), handle in zip(cases, handles, strict=True):
            blocking, queued = engine.upscale(image, **options), handle.result()
            assert blocking.warnings == queued.warnings == exact_warnings(*what)
            assert blocking.stats()["warnings"] == list(exact_warnings(*what))
            assert relative_error(blocking.tensor, queued.tensor) <= 1e-3
    assert same(engine.upscale(bright), exact().upscale(bright))
    assert [r.warnings for r in engine.upscale_samples(wide, [1, 2])] == [exact_warnings("tile 2", "tile 3")] * 2


def test_what_is_not_finite_in_float32_either_fails_alone(half: Half) -> None:
    engine = half(overflowing(), threaded=False, batch_size=4)
    noise = torch.zeros(MICRO.refiner_steps + 1, 3, MICRO.latent_side**2, MICRO.latent_channels)
    noise[0, 2] = float("nan")
    with pytest.raises(NumericalError, match=r"in fp16 and in fp32 for .* \[2\] of") as caught:
        engine.generate(lr_of([0], 3), noise=noise)
    assert caught.value.details == {"rows": [2], "dtypes": ["fp16", "fp32"]}
    with pytest.raises(NumericalError, match=r"in fp16 for .* \[0\] of"):  # a trace shows what happened
        engine.generate(lr_of([0], 3), trace=True)


# --- the decoder ------------------------------------------------------------------------------------------------------


def latent(height: int, width: int) -> torch.Tensor:
    return torch.randn(MICRO.latent_channels, height, width, generator=torch.Generator().manual_seed(4))


def test_a_whole_latent_is_decoded_again(half: Half) -> None:
    engine, z = half(), torch.stack([latent(9, 9)] * 3)
    z[1, 0, 4, 4] = 7e4  # more than float16 holds
    again: list[int] = []
    images = engine._pipeline.decode(z, again)
    assert again == [1] and torch.equal(images[1:2], engine_of()._pipeline.decode(z[1:2]))
    assert torch.equal(images[0], half()._pipeline.decode(z[:1])[0])
    z[2, 0, 0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"in fp16 and in fp32 for .* \[2\] of"):
        engine._pipeline.decode(z)


def test_windows_are_decoded_again_one_by_one(half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments of NaN are not among those that all windows share; the others stay in float16."""
    z, told = latent(8, 24), []
    z[0, 4, 21] = 7e4
    engines = half(), engine_of()
    for engine in engines:
        monkeypatch.setattr(engine._pipeline, "window_shape", lambda columns: (8, 16))
    runs: list[tuple[torch.dtype, int]] = []
    windows = [e._pipeline.decode_in_bands(LatentRows.of(z), lambda: told.append(1)) for e in engines]
    from varsr_engine.engine.convolutions import Convolutional

    forward = Convolutional.forward

    def counted(self: Convolutional, x: torch.Tensor) -> torch.Tensor:
        runs.append((self.dtype, x.shape[3]))
        return forward(self, x)

    monkeypatch.setattr(Convolutional, "forward", counted)
    image = torch.cat(list(windows[0]), dim=1)
    half_runs = [dtype for dtype, _ in runs]
    expected = torch.cat(list(windows[1]), dim=1)
    assert told == [1] and image.isfinite().all()
    assert (
        half_runs.count(torch.float32) == 2 and half_runs.count(torch.float16) == 4
    )  # two windows, learned and shared
    assert relative_error(image, expected) <= 2e-2


def test_a_picture_whose_window_overflows_says_so(half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = half()
    blended = engine._blended_latent

    def spiked(*args: Any) -> Any:
        rows, seconds, warnings = blended(*args)
        whole = rows[0].whole()
        whole[0, 0, 0] = 7e4
        return [LatentRows.of(whole)], seconds, warnings

    monkeypatch.setattr(engine, "_blended_latent", spiked)
    assert engine.upscale(picture(*LARGE)).warnings == exact_warnings("a part of the picture")


# --- the float32 model ------------------------------------------------------------------------------------------------


def test_it_is_kept_where_it_is_small_beside_the_memory(half: Half, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make = Pipeline.__init__

    def counted(self: Pipeline, *args: Any, **kwargs: Any) -> None:
        made.append(1)
        make(self, *args, **kwargs)

    monkeypatch.setattr(Pipeline, "__init__", counted)
    for room, expected in ((2**40, 2), (2**20, 3)):  # with the engine's own
        monkeypatch.setattr(nonfinite, "available_bytes", lambda device, room=room: room)
        made.clear()
        engine = half(overflowing())
        for _ in range(2):
            assert engine.generate(lr_of([0], 1)).again == [0]
        assert len(made) == expected
    monkeypatch.setattr(nonfinite, "available_bytes", lambda device: None)
    assert not keeps_float32(TensorCheckpoint(WEIGHTS, MICRO, "micro"), torch.device("cpu"))


def test_a_clean_run_makes_none(half: Half) -> None:
    engine = half()
    engine.upscale(picture(*LARGE))
    assert engine._pipeline._float32 is not None and engine._pipeline._float32._value is None
    assert engine_of()._pipeline._float32 is None
