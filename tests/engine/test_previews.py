"""Previews: what events show of a picture on its way, and that looking changes nothing."""

from __future__ import annotations

import dataclasses
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.engine.test_graphs import Recording
from tests.engine.test_tiling import MICRO, WEIGHTS, engine_of, picture, same
from tests.kernels.harness import raises
from varsr_engine.checkpoint import TensorCheckpoint, convert_checkpoint, open_checkpoint, save_model
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.graphs import GraphCache
from varsr_engine.engine.params import EngineConfig
from varsr_engine.engine.preview import Preview, PreviewCanvas, PreviewMap, fitted, tile_places
from varsr_engine.engine.preview_fit import fit_preview_map, least_squares, rows_of
from varsr_engine.engine.result import UpscaleResult
from varsr_engine.engine.scheduling import Event
from varsr_engine.engine.tiling import tile_grid
from varsr_engine.errors import CheckpointMismatchError, InvalidParamsError, UnsupportedFormatError
from varsr_engine.imaging import Picture, resize_rgb, to_network_input

PHOTO = Path(__file__).parents[2] / "examples" / "photo.jpg"
SMALL, LARGE = (8, 8), (20, 13)  # of one tile, and of six
MAP = {
    "preview.weight": torch.randn(3, MICRO.latent_channels, generator=torch.Generator().manual_seed(5)) * 0.1,
    "preview.bias": torch.full((3,), 0.5),
}
SCALES = [f"scale.{k}" for k in range(MICRO.num_scales)]


def engine_with_map(**settings: Any) -> Engine:
    settings = {"threaded": False, "batch_size": 1} | settings
    return Engine(TensorCheckpoint(WEIGHTS | MAP, MICRO, "micro"), EngineConfig(device="cpu", **settings))


@pytest.fixture
def engine() -> Engine:
    return engine_with_map()


@pytest.fixture(scope="module")
def mini() -> Engine:
    return Engine.from_pretrained("varsr-mini", device="cpu", threaded=False)


def streamed(engine: Engine, *args: Any, **settings: Any) -> tuple[list[Event], UpscaleResult]:
    """All events, which a handle keeps 16 of, taken as they come; and the result."""
    *events, result = engine.stream(*args, **settings)
    assert all(isinstance(event, Event) for event in events) and isinstance(result, UpscaleResult)
    return events, result  # type: ignore[return-value]


def previews_of(events: list[Event]) -> list[Preview]:
    return [event.preview for event in events if event.preview is not None]


def psnr(a: Image.Image, b: Image.Image) -> float:
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return float(-10 * np.log10(np.square(difference / 255).mean()))


# --- what is shown ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["latent", "decoded"])
def test_every_scale_and_the_refiner_are_shown_in_order(engine: Engine, mode: str) -> None:
    events, result = streamed(engine, picture(*SMALL), previews=mode)
    assert [event.stage for event in events] == ["condition", *SCALES, "refiner", "decoder"]
    assert [event.stage for event in events if event.preview is not None] == [*SCALES, "refiner"]
    for preview in previews_of(events):
        assert isinstance(preview, Preview) and preview.size == result.size == preview.image.size
        assert preview.image.mode == "RGB"
    assert len({preview.image.tobytes() for preview in previews_of(events)}) == len(SCALES) + 1


def test_nothing_is_shown_unless_asked_for(engine: Engine) -> None:
    events, _ = streamed(engine, picture(*SMALL))
    assert [event.stage for event in events] == ["condition", *SCALES, "refiner", "decoder"]
    assert previews_of(events) == []


def test_the_decoded_latent_is_the_picture(engine: Engine) -> None:
    """After the refiner, before colour fix and fidelity: what the decoder then gives, to the bit."""
    events, result = streamed(engine, picture(*SMALL), previews="decoded", color_fix="none", fidelity=0.0)
    assert np.array_equal(np.asarray(previews_of(events)[-1].image), result.array)


def test_the_map_is_linear_in_a_cell(engine: Engine) -> None:
    latent = torch.randn(MICRO.latent_channels, 8, 8)
    seen = engine.colours(latent, decoded=False)
    expected = torch.einsum("cz,zhw->chw", MAP["preview.weight"], latent) + MAP["preview.bias"][:, None, None]
    torch.testing.assert_close(seen, expected.clamp(0, 1))


@pytest.mark.parametrize("mode", ["latent", "decoded"])
def test_later_scales_are_nearer_to_the_result(mini: Engine, mode: str) -> None:
    events, result = streamed(mini, Image.open(PHOTO).crop((40, 40, 72, 72)), previews=mode, preview_max_side=32)
    final = result.image.resize((32, 32), Image.Resampling.BOX)
    nearness = [psnr(preview.image, final) for preview in previews_of(events)]
    assert nearness[0] + 3 < max(nearness[-2:]) and nearness[2] < nearness[-1]
    assert nearness[-1] > 20


# --- looking changes nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["latent", "decoded"])
@pytest.mark.parametrize(("size", "tile"), [(SMALL, "auto"), (LARGE, "auto"), (LARGE, "published"), (LARGE, "off")])
def test_the_result_is_the_same_to_the_bit(engine: Engine, size: tuple[int, int], tile: str, mode: str) -> None:
    source = picture(*size)
    events, seen = streamed(engine, source, seed=3, tile=tile, previews=mode)
    assert previews_of(events)
    assert same(seen, engine.upscale(source, seed=3, tile=tile, previews=mode))
    assert same(seen, engine.submit(source, seed=3, tile=tile).result())
    assert seen.stats().keys() == engine.upscale(source, tile=tile).stats().keys()


def test_one_who_looks_shares_a_batch_with_one_who_does_not() -> None:
    engine, plain = engine_with_map(batch_size=2), engine_with_map(batch_size=2)
    sources = [picture(*SMALL, seed=n) for n in range(2)]
    handles = [engine.submit(sources[0], events=True, previews="latent"), engine.submit(sources[1], events=True)]
    others = [plain.submit(source) for source in sources]
    for handle, other in zip(handles, others, strict=True):
        assert same(handle.result(), other.result())
    assert engine.stats().batch_sizes == {2: 1}
    shown = [[event.preview for event in handle.events() if isinstance(event, Event)] for handle in handles]
    assert any(shown[0]) and not any(shown[1])


def test_nothing_is_made_where_nobody_listens(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "colours", lambda *args, **kwargs: pytest.fail("somebody looked"))
    runs: list[Any] = []
    generate = engine._pipeline.generate
    monkeypatch.setattr(
        engine._pipeline, "generate", lambda *a, **k: (runs.append(k.get("on_latent")), generate(*a, **k))[1]
    )
    engine.submit(picture(*SMALL), previews="latent").result()
    engine.upscale(picture(*SMALL), previews="decoded")
    assert runs == [None, None]


def test_a_broken_preview_fails_no_request(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no colours today")

    monkeypatch.setattr(engine, "colours", broken)
    with caplog.at_level(logging.WARNING):
        events, result = streamed(engine, picture(*SMALL), previews="latent")
    assert [event.stage for event in events] == ["condition", *SCALES, "refiner", "decoder"]
    assert previews_of(events) == [] and same(result, engine.upscale(picture(*SMALL)))
    assert "a preview after scale.0 failed" in caplog.text


def test_a_batch_that_is_looked_at_is_no_graph() -> None:
    """A graph shows nothing before its end; batches that nobody looks at stay graphs."""
    engine, capture = engine_with_map(), Recording()
    engine._pipeline._graphs, engine._pipeline._largest_graph = GraphCache(capture), 1
    engine.submit(picture(*SMALL), events=True).result()
    assert capture.captured == [1] and capture.replayed == [1]
    for source in (picture(*SMALL), picture(*LARGE)):
        events, _ = streamed(engine, source, previews="latent")
        assert previews_of(events)
    assert capture.captured == [1] and capture.replayed == [1]


# --- several tiles ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["latent", "decoded"])
def test_tiles_are_painted_over_the_input(engine: Engine, mode: str) -> None:
    source = picture(*LARGE)
    events, result = streamed(engine, source, previews=mode, preview_max_side=80)
    shown = previews_of(events)
    assert {preview.size for preview in shown} == {result.size} == {(80, 52)}
    assert len(shown[0].parts) == 1 and len(shown[-1].parts) == result.tiles == 6
    before = resize_rgb(source.astype(np.float32) / 255, (80, 52)) * 255
    first = np.asarray(shown[0].image, dtype=float)
    (place, _) = shown[0].parts[0]
    (left, top), (width, height) = place.corner, place.size
    painted = np.zeros(first.shape[:2], dtype=bool)
    painted[top : top + height, left : left + width] = True
    assert np.abs(first - before)[~painted].max() <= 0.501  # rounded to 8 bits
    assert np.abs(first - before)[painted].max() > 5


def test_tiles_make_one_picture(engine: Engine) -> None:
    """Painted with the parts of one picture, the tiles give that picture back."""
    grid = tile_grid(MICRO, (80, 52))
    assert grid is not None
    whole = torch.nn.functional.interpolate(
        torch.rand(1, 3, 4, 5), size=(grid.rows * 4, grid.columns * 4), mode="bicubic"
    )
    whole = whole[0].clamp(0, 1)
    canvas = PreviewCanvas(Picture(rgb=np.zeros((4, 5, 3), np.float32)), grid, (80, 52), 256)
    for index, tile in enumerate(grid.cut(whole, grid.origins)):
        preview = canvas.show(index, tile)
    expected = (whole.permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
    assert np.abs(np.asarray(preview.image, dtype=int) - expected).max() <= 1


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 7), st.integers(1, 64))
def test_every_pixel_belongs_to_one_tile(width: int, height: int, overlap: int, max_side: int) -> None:
    grid = tile_grid(MICRO, (width, height), overlap)
    if grid is None:
        return
    size = fitted((width, height), max_side)
    count = np.zeros(size[::-1], dtype=int)
    for place in tile_places(grid, size):
        (left, top), (w, h), box = place
        count[top : top + h, left : left + w] += 1
        assert all(0 <= share <= 1 for share in box)
        if min(w, h) > 0:
            assert box[0] < box[2] and box[1] < box[3]
    assert (count == 1).all()


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((640, 480), 256, (256, 192)), ((100, 50), 256, (100, 50)), ((3000, 1), 256, (256, 1)), ((7, 9), 1, (1, 1))],
)
def test_sizes(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    assert fitted(size, side) == expected


def test_previews_stay_as_they_were(engine: Engine) -> None:
    canvas = PreviewCanvas(Picture(rgb=np.zeros((8, 8, 3), np.float32)), None, (32, 32), 16)
    colours = torch.full((3, 8, 8), 0.25)
    first = canvas.show(0, colours)
    before = first.image.tobytes()
    colours.fill_(1)
    second = canvas.show(0, torch.ones(3, 8, 8))
    assert first.image.tobytes() == before != second.image.tobytes()
    assert second.image.getpixel((3, 3)) == (255, 255, 255) and first.image.getpixel((3, 3)) == (64, 64, 64)
    with pytest.raises(ValueError, match="read-only"):
        first.parts[0][1][:] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.size = (1, 1)  # type: ignore[misc]


def test_encoding(engine: Engine) -> None:
    preview = previews_of(streamed(engine, picture(*SMALL), previews="latent", preview_max_side=20)[0])[-1]
    for format in ("JPEG", "PNG", "WEBP"):
        with Image.open(io.BytesIO(preview.encode(format))) as image:
            assert (image.format, image.size, image.mode) == (format, (20, 20), "RGB")
    with Image.open(io.BytesIO(preview.encode("PNG"))) as image:
        assert image.tobytes() == preview.image.tobytes()
    assert len(preview.encode(quality=95)) > len(preview.encode(quality=10)) and preview.encode()[:2] == b"\xff\xd8"
    with pytest.raises(UnsupportedFormatError):
        preview.encode("GIF")
    with pytest.raises(InvalidParamsError):
        preview.encode(quality=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"previews": "all"}, "previews must be one of ('none', 'latent', 'decoded'), got 'all'"),
        ({"previews": None}, "previews must be one of ('none', 'latent', 'decoded'), got None"),
        ({"preview_max_side": 0}, "preview_max_side must be an integer in [1, 2048], got 0"),
        ({"preview_max_side": 2049}, "preview_max_side must be an integer in [1, 2048], got 2049"),
        ({"preview_max_side": 64.0}, "preview_max_side must be an integer in [1, 2048], got 64.0"),
    ],
)
def test_wrong_values(engine: Engine, values: dict[str, Any], message: str) -> None:
    with raises(InvalidParamsError, message):
        engine.submit(picture(*SMALL), **values)


# --- the map ---------------------------------------------------------------------------------------------------------


def test_a_model_without_a_map_gets_one_at_its_first_preview() -> None:
    engine = engine_of(threaded=False)
    assert engine._preview_map is None
    events, result = streamed(engine, picture(*SMALL), previews="latent")
    assert len(previews_of(events)) == len(SCALES) + 1 and same(result, engine.upscale(picture(*SMALL)))
    again = fit_preview_map(engine_of(), pictures=2)
    assert all(torch.equal(a, b) for a, b in zip(engine.preview_map, again.map, strict=True))
    assert 0 < again.r_squared <= 1


def test_least_squares_finds_a_linear_map_whatever_the_rank() -> None:
    cells = torch.randn(50, 6, dtype=torch.float64)
    cells[:, 5] = cells[:, 0]
    weight, bias = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    colours = cells @ weight.t() + bias
    fit = least_squares(cells, colours)
    assert fit.r_squared == pytest.approx(1) and fit.map.weight.shape == (3, 6)
    torch.testing.assert_close(cells @ fit.map.weight.double().t() + fit.map.bias, colours, rtol=1e-5, atol=1e-5)
    spoiled = least_squares(cells, colours + torch.randn(50, 3, dtype=torch.float64) * colours.std())
    assert spoiled.r_squared < 0.9


def test_the_packaged_map_knows_the_decoder(mini: Engine) -> None:
    """On a photograph that it was not fitted to: most of the variance of the decoded cells' colours."""
    side, f = mini.model_config.image_side, mini.model_config.downsample
    rgb = np.asarray(Image.open(PHOTO).crop((40, 40, 72, 72)), dtype=np.float32) / 255
    latent = mini.generate(to_network_input(resize_rgb(rgb, (side, side)))).latent
    decoded, seen = rows_of(F.avg_pool2d(mini.decode(latent), f)), rows_of(mini.preview_map.colours(latent[0])[None])
    left = (decoded - seen).square().sum() / (decoded - decoded.mean(0)).square().sum()
    assert left <= 0.25


def test_weights_bring_their_map(tmp_path: Path) -> None:
    path = save_model(tmp_path / "mini.safetensors", MICRO, WEIGHTS | MAP)
    opened = open_checkpoint(path)
    plain = open_checkpoint(save_model(tmp_path / "plain.safetensors", MICRO, WEIGHTS))
    assert opened.num_parameters == plain.num_parameters and opened.shapes == plain.shapes
    assert PreviewMap.of(plain) is None
    for folder, fit in (("kept", None), ("fitted", lambda checkpoint: {n: t + 1 for n, t in MAP.items()})):
        copied = PreviewMap.of(open_checkpoint(convert_checkpoint(path, tmp_path / folder, fit_preview=fit)))
        assert copied is not None
        for name, tensor in copied.tensors.items():
            expected = MAP[name].half().float() if fit is None else MAP[name] + 1
            assert torch.equal(tensor, expected)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"preview.weight": torch.zeros(8, 3), "preview.bias": torch.zeros(3)}, r"shape \(8, 3\), expected \(3, 8\)"),
        ({"preview.weight": torch.zeros(3, 8)}, "'preview.bias' is missing"),
        ({"preview.bias": torch.zeros(3)}, "'preview.weight' is missing"),
        ({**MAP, "preview.scale": torch.zeros(3)}, "'preview.scale'"),
    ],
)
def test_a_wrong_map_is_refused(tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(CheckpointMismatchError, match=message):
        TensorCheckpoint(WEIGHTS | tensors, MICRO, "micro")
