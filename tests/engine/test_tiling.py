"""Images of several tiles: geometry as published, noise that tiles agree on, and results that batches do not change."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open

from tests.golden_cases import weights
from tests.kernels.harness import raises
from tests.numerics import relative_error
from varsr_engine.checkpoint import TensorCheckpoint
from varsr_engine.config import ModelConfig
from varsr_engine.engine import convolutions, latent_rows
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.latent_rows import LatentRows
from varsr_engine.engine.memory import decoder_bytes
from varsr_engine.engine.noise import map_positions, tile_positions
from varsr_engine.engine.params import EngineConfig
from varsr_engine.engine.result import UpscaleResult
from varsr_engine.engine.tiling import (
    LatentBlend,
    SeamMeter,
    TileGrid,
    axis_offsets,
    gaussian_window,
    ramp_window,
    seam_score,
    tile_grid,
    tiles_per_pass,
)
from varsr_engine.errors import ImageTooLargeError, InvalidParamsError, RequestCancelled, ResourceExhaustedError
from varsr_engine.imaging import resize_alpha, resize_rgb, to_network_input
from varsr_engine.imaging.color import color_fix
from varsr_engine.model.varsr import VARSR

IMAGING = Path(__file__).parents[1] / "golden" / "imaging.safetensors"
CPU = torch.device("cpu")
# Tiles of 8 x 8 cells, 4 pixels a cell: nothing may take the published 32 and 16 for granted.
MICRO = ModelConfig(
    depth=2,
    embed_dim=32,
    num_heads=2,
    patch_nums=(1, 2, 4, 8),
    vocab_size=64,
    latent_channels=8,
    cond_channels=(8, 16, 16),
    vae_channels=8,
    vae_multipliers=(1, 2, 2),
    vae_norm_groups=4,
    refiner_width=16,
    refiner_depth=2,
    guidance_scale=2.0,
)
SIDE, WEIGHTS = MICRO.image_side, weights(MICRO, 3)


def engine_of(config: ModelConfig = MICRO, **settings: Any) -> Engine:
    checkpoint = TensorCheckpoint(WEIGHTS, config, "micro")
    return Engine(checkpoint, EngineConfig(device="cpu", **settings))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_of()


def picture(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth colours with noise: (H, W, C) uint8."""
    y, x = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(x / (5 + c) + y / (9 - c) + c) for c in range(channels)]
    noise = np.random.default_rng(seed).normal(0, 12, (height, width, channels))
    return np.clip(np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)


def same(a: UpscaleResult, b: UpscaleResult) -> bool:
    return np.array_equal(a.picture.rgb, b.picture.rgb)


# --- geometry --------------------------------------------------------------------------------------------------------


def test_offsets_as_published() -> None:
    with safe_open(IMAGING, "pt") as file:
        golden = json.loads(file.metadata()["tile_offsets"])
    assert {length: list(axis_offsets(int(length), 32, 8)) for length in golden} == golden


def test_window_as_published() -> None:
    with safe_open(IMAGING, "pt") as file:
        golden = file.get_tensor("window32")
    window = gaussian_window(32)
    assert window.dtype == torch.float32 and ((window - golden).abs() / golden).max() <= 2e-7


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 7))
def test_every_cell_is_covered(width: int, height: int, overlap: int) -> None:
    grid = tile_grid(MICRO, (width, height), overlap)
    if grid is None:
        assert max(width, height) <= SIDE
        return
    assert all(length >= max(SIDE, size) for length, size in zip(grid.image_size, (width, height), strict=True))
    assert all(length - max(SIDE, size) < 4 for length, size in zip(grid.image_size, (width, height), strict=True))
    for length, offsets in ((grid.rows, grid.tops), (grid.columns, grid.lefts)):
        assert offsets[0] == 0 and offsets[-1] == length - 8
        steps = np.diff(offsets)
        assert (steps > 0).all() and (steps <= 8 - overlap).all() and (steps[:-1] == 8 - overlap).all()
    assert len(grid.origins) == len(grid)


def test_the_default_overlap_is_a_quarter_and_too_much_is_refused(engine: Engine) -> None:
    assert tile_grid(MICRO, (100, 100)) == tile_grid(MICRO, (100, 100), 2)
    published = tile_grid(ModelConfig.varsr_d24(), (1024, 512))
    assert published is not None and (published.tops, published.lefts) == ((0,), (0, 24, 32))
    message = "tile_overlap must be an integer in [0, 7] cells for this model, got 8"
    with raises(InvalidParamsError, message):
        engine.upscale(picture(30, 30), tile_overlap=8)


@pytest.mark.parametrize("window", [gaussian_window, lambda side: ramp_window(side, 3)], ids=["published", "ramp"])
def test_blending_equal_tiles_gives_them_back(window: Callable[[int], torch.Tensor]) -> None:
    grid = TileGrid(rows=11, columns=9, side=8, downsample=4, tops=(0, 3), lefts=(0, 1))
    whole = torch.randn(2, 5, 11, 9)
    blend = LatentBlend(grid, window(8), 2, 5, CPU)
    for r, c in grid.origins:
        blend.add(whole[..., r : r + 8, c : c + 8], (r, c))
    latents = blend.result()
    torch.testing.assert_close(torch.stack([z.whole() for z in latents]), whole, rtol=1e-5, atol=1e-6)


def test_the_ramp_adds_up_to_one_where_two_tiles_overlap() -> None:
    ramp = ramp_window(32, 8)[16]
    assert (ramp[8:24] == 1).all() and torch.equal(ramp, ramp.flip(0)) and 0 < ramp[0] < 1e-5
    torch.testing.assert_close(ramp[:8] + ramp[24:], torch.ones(8), atol=3e-6, rtol=0)
    assert (ramp_window(8, 0) > 0).all() and (ramp_window(8, 7) > 0).all()


def test_blending_row_by_row_is_blending_the_whole() -> None:
    """Bit for bit, where rows of tiles overlap more than once, in memory and in a file."""
    grid = TileGrid(
        rows=29, columns=17, side=8, downsample=4, tops=axis_offsets(29, 8, 5), lefts=axis_offsets(17, 8, 2)
    )
    tiles = {origin: torch.randn(2, 5, 8, 8) for origin in grid.origins}
    total, weight, window = torch.zeros(2, 5, 29, 17), torch.zeros(29, 17), gaussian_window(8)
    blend = LatentBlend(grid, window, 2, 5, CPU)
    for (r, c), tile in tiles.items():
        total[..., r : r + 8, c : c + 8] += tile * window
        weight[r : r + 8, c : c + 8] += window
        blend.add(tile, (r, c))
    assert torch.equal(torch.stack([z.whole() for z in blend.result()]), total / weight)


def test_a_latent_is_kept_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(3, 20, 7)
    monkeypatch.setattr(latent_rows, "SPOOL_BYTES", 4 * 3 * 7 * 9)
    kept = LatentRows(3, 7)
    for rows in z.split((4, 1, 10, 5), dim=1):
        kept.append(rows)
        assert torch.equal(kept.take(0, 2), z[:, :2])
    assert torch.equal(kept.whole(), z) and torch.equal(kept.take(8, 13), z[:, 8:13])
    assert kept._file._rolled  # type: ignore[attr-defined]
    monkeypatch.setattr(kept, "_file", _Full())
    with pytest.raises(ResourceExhaustedError, match=r"has no room for it .* TMPDIR"):
        kept.append(z)


class _Full(io.BytesIO):
    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_tiles_a_pass_follow_the_size_of_the_model() -> None:
    assert tiles_per_pass(ModelConfig.varsr_d24(), CPU, torch.float32) == 1
    assert tiles_per_pass(MICRO, CPU, torch.float32) > 100


# --- noise -----------------------------------------------------------------------------------------------------------


def test_neighbours_draw_the_same_noise_where_they_overlap(engine: Engine) -> None:
    loop = engine._pipeline._refiner_loop
    origins = torch.tensor([[0, 0], [3, 6], [70000 >> 4, 5]])
    noise = loop.draw(torch.tensor([9, 9, 9]), origins, 2).unflatten(1, (8, 8))
    assert torch.equal(noise[0, 3:, 6:], noise[1, :5, :2])
    assert not torch.equal(noise[0], noise[2])
    assert torch.equal(noise[0].flatten(0, 1), loop.draw(torch.tensor([9]), origins[:1], 2)[0])


def test_positions_of_every_scale() -> None:
    """At the last scale a cell's own place; at coarser ones the nearest cell of a grid from the image's corner."""
    origins = torch.tensor([[0, 0], [6, 13]])
    fine = tile_positions(map_positions(8, CPU), 8, origins, 8).unflatten(1, (8, 8))
    assert fine[0, 2, 5] == 2 << 16 | 5 and fine[1, 2, 5] == 8 << 16 | 18
    coarse = tile_positions(map_positions(4, CPU), 4, origins, 8).unflatten(1, (4, 4))
    assert coarse[0, 0, 0] == 0 and coarse[1, 0, 0] == 3 << 16 | 7  # 6.5, rounded up
    assert torch.equal(tile_positions(map_positions(1, CPU), 1, origins, 8)[:, 0], torch.tensor([0, 1 << 16 | 2]))


# --- one tile --------------------------------------------------------------------------------------------------------


def test_what_fits_one_tile_is_as_before(engine: Engine) -> None:
    source = picture(SIDE // 4, SIDE // 4 - 2)
    result = engine.upscale(source, seed=5)
    lr = to_network_input(resize_rgb(source.astype(np.float32) / 255, (SIDE, SIDE), eight_bit=True))
    image = engine.generate(lr, seed=5).images
    expected = color_fix("adain", image, (lr + 1) / 2)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(result.picture.rgb, resize_rgb(np.ascontiguousarray(expected), (SIDE, SIDE - 8)))
    assert (result.tiles, result.seam_score) == (1, None)
    assert same(result, engine.upscale(source, seed=5, tile="off"))


def test_tiles_off_resizes_to_one(engine: Engine) -> None:
    result = engine.upscale(picture(30, 21), tile="off")
    assert result.size == (120, 84) and result.stats()["tiles"] == 1 and result.stats()["seam_score"] is None


# --- several tiles ---------------------------------------------------------------------------------------------------


def test_as_the_published_method_by_the_letter(engine: Engine) -> None:
    """Section 10 of the specification, cell by cell, on 3 x 2 tiles, with the reference's decoder."""
    source = picture(16, 11)  # 64 x 44 pixels: 16 x 11 cells
    result = engine.upscale(source, refiner_temperature=0, tile="published")
    lr = to_network_input(resize_rgb(source.astype(np.float32) / 255, (64, 44), eight_bit=True))
    total, weight = torch.zeros(8, 11, 16), torch.zeros(11, 16)
    window = gaussian_window(8)
    for top in (0, 3):
        for left in (0, 6, 8):
            tile = lr[..., top * 4 : top * 4 + 32, left * 4 : left * 4 + 32]
            latent = engine.generate(tile, refiner_temperature=0).latent[0]
            for i in range(8):
                for j in range(8):
                    total[:, top + i, left + j] += latent[:, i, j] * window[i, j]
                    weight[top + i, left + j] += window[i, j]
    model = VARSR(MICRO)
    model.load_state_dict(WEIGHTS)
    with torch.no_grad():
        image = model.vae.decode((total / weight)[None])
    expected = color_fix("adain", image, (lr + 1) / 2)[0].permute(1, 2, 0).numpy()
    assert result.tiles == 6
    assert np.abs(result.picture.rgb - expected).max() <= 1e-5


@pytest.mark.parametrize("options", [{}, {"top_k": 20, "temperature": 1.3}], ids=["greedy", "sampled"])
def test_batches_do_not_matter(options: dict[str, Any]) -> None:
    source = picture(21, 13)
    results = [engine_of(batch_size=size).upscale(source, seed=4, **options) for size in (None, 1, 5)]
    assert results[0].tiles == 8
    for other in results[1:]:
        assert relative_error(other.tensor, results[0].tensor) <= 1e-5


def test_repeated_calls_are_identical_and_seeds_matter(engine: Engine) -> None:
    source = picture(20, 12)
    first, second, other = (engine.upscale(source, seed=seed) for seed in (7, 7, 8))
    assert same(first, second) and not same(first, other)


@pytest.mark.parametrize(
    ("size", "scale"), [((1, 1), 4), ((1, 1), 0.1), ((1, 300), 1.5), ((37, 201), 1), ((129, 2), 0.7)]
)
def test_odd_sizes(engine: Engine, size: tuple[int, int], scale: float) -> None:
    result = engine.upscale(picture(*size), scale=scale, color_fix="wavelet")
    assert result.size == tuple(max(1, round(side * scale)) for side in size)
    assert np.isfinite(result.picture.rgb).all() and 0 <= result.picture.rgb.min() <= result.picture.rgb.max() <= 1
    assert (result.tiles > 1) == (max(result.size) > SIDE) == (result.seam_score is not None)


def test_alpha_and_gray(engine: Engine) -> None:
    source = picture(23, 17, channels=4)
    result = engine.upscale(source)
    assert result.tiles > 1 and result.picture.alpha is not None
    assert np.array_equal(result.picture.alpha, resize_alpha(source[..., 3].astype(np.float32) / 255, (92, 68)))
    assert engine.upscale(source, alpha="drop").picture.alpha is None
    assert engine.upscale(source[..., 0]).image.mode == "L"


def test_colours_are_those_of_the_whole_input(engine: Engine) -> None:
    source = picture(30, 30)
    rgb = engine.upscale(source).picture.rgb
    style = resize_rgb(source.astype(np.float32) / 255, (120, 120), eight_bit=True)
    assert np.abs(rgb.mean((0, 1)) - style.mean((0, 1))).max() <= 0.02


def test_guidance_of_tiles_has_its_own_default() -> None:
    tiled = engine_of(dataclasses.replace(MICRO, guidance_scale_tiled=5.0))
    small, large = picture(8, 8), picture(12, 12)
    assert same(tiled.upscale(large), tiled.upscale(large, cfg=5.0))
    assert not same(tiled.upscale(large), tiled.upscale(large, cfg=2.0))
    assert same(tiled.upscale(small), tiled.upscale(small, cfg=2.0))
    plain = engine_of()
    assert same(plain.upscale(large), plain.upscale(large, cfg=2.0))


def test_several_seeds_of_a_tiled_image(engine: Engine) -> None:
    source, seeds = picture(15, 10), [3, 90, 4]
    for options in ({}, {"top_k": 10}):
        results = engine.upscale_samples(source, seeds, **options)
        assert [result.seed for result in results] == seeds
        for result in results:
            alone = engine.upscale(source, seed=result.seed, **options)
            assert relative_error(result.tensor, alone.tensor) <= 1e-5


def test_many_images_of_both_kinds() -> None:
    engine = engine_of(batch_size=3)
    sources = [picture(*size) for size in ((7, 8), (20, 9), (5, 5), (8, 8), (9, 9))]
    results = list(engine.upscale_many(sources))
    assert [isinstance(r, UpscaleResult) and r.tiles for r in results] == [1, 6, 1, 1, 4]
    for source, result in zip(sources, results, strict=True):
        assert isinstance(result, UpscaleResult)
        assert relative_error(result.tensor, engine.upscale(source).tensor) <= 1e-5


def test_progress_counts_tiles_and_seconds_are_sums() -> None:
    tiles, stages = [], []
    engine = engine_of(batch_size=3)
    result = engine.upscale(
        picture(21, 13), on_tiles=lambda done, total: tiles.append((done, total)), on_stage=stages.append
    )
    assert tiles == [(0, 8), (2, 8), (5, 8), (8, 8)]
    assert stages.count("condition") == stages.count("refiner") == 3 and stages[-1:] == ["decoder"]
    assert stages.count("decoder") == 1 and list(result.seconds) == [*stages[:6], "decoder"]
    one: list[Any] = []
    engine.upscale(picture(8, 8), on_tiles=lambda *counts: one.append(counts))
    assert one == []


def test_an_output_too_large_to_decode_is_refused_before_it_is_computed() -> None:
    source = picture(30, 30)
    grid = tile_grid(MICRO, (120, 120))
    assert grid is not None
    engine = engine_of(max_decoder_bytes=decoder_bytes(MICRO, 120 * 120, 4) - 1)
    with pytest.raises(ImageTooLargeError, match=r"decoding an output of 120x120 .* set tile to auto"):
        engine.upscale(source, tile="published")
    assert engine.upscale(source).size == (120, 120)
    assert engine.upscale(picture(29, 29), tile="published").tiles > 1


def test_the_decoder_attends_to_everything_some_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    latent = torch.randn(2, 8, 13, 21)
    whole = engine_of()._pipeline.decode(latent)
    monkeypatch.setattr(convolutions, "ATTENTION_BYTES", 4 * 13 * 21 * 10)
    assert relative_error(engine_of()._pipeline.decode(latent), whole) <= 1e-6


# --- the seam score --------------------------------------------------------------------------------------------------

GRID = TileGrid(rows=8, columns=20, side=8, downsample=4, tops=(0,), lefts=(0, 6, 12))


def with_step(column: int, height: float = 0.1) -> torch.Tensor:
    """Flat, but for a step before a column of pixels."""
    image = torch.full((3, 32, 80), 0.4)
    image[:, :, column:] += height
    return image


def test_seam_score() -> None:
    flat, faint = torch.full((3, 32, 80), 0.4), torch.rand(3, 32, 80, generator=torch.Generator().manual_seed(0)) * 0.01
    assert seam_score(flat, flat, GRID) == 1.0
    for seam in (28, 52):  # in the middle of the overlaps of cells 6 to 8, and 12 to 14
        assert seam_score(with_step(seam) + faint, flat, GRID) > 2
        assert seam_score(with_step(seam, 0.01) + faint, flat, GRID) > 1.1
        assert seam_score(with_step(seam) + faint, with_step(seam) + faint, GRID) == pytest.approx(1.0)
    assert seam_score(with_step(15) + faint, flat, GRID) < 1
    assert seam_score(faint, flat, GRID) == pytest.approx(1, abs=0.1)


def test_a_strong_edge_elsewhere_hides_no_seam() -> None:
    """Nor does it make one: each place is compared to what is near it."""
    image = with_step(28, 0.02) + torch.rand(3, 32, 80, generator=torch.Generator().manual_seed(0)) * 0.01
    edge = image.clone()
    edge[:, :, 70:] += 0.5
    score = seam_score(image, torch.zeros(3, 32, 80), GRID)
    assert score > 1.5 and seam_score(edge, torch.zeros(3, 32, 80), GRID) > 0.9 * score


def test_seams_of_rows_and_bands_of_any_height() -> None:
    grid = dataclasses.replace(GRID, rows=20, columns=8, tops=GRID.lefts, lefts=GRID.tops)
    image = (with_step(28) + torch.rand(3, 32, 80, generator=torch.Generator().manual_seed(0)) * 0.01).transpose(1, 2)
    whole, banded = SeamMeter(grid), SeamMeter(grid)
    whole.add(image)
    for band in image.split([1, 40, 7, 31, 1], dim=1):
        banded.add(band)
    assert whole.ratio > 2 and banded.ratio == pytest.approx(whole.ratio, rel=1e-12)


def test_a_constant_image_has_no_seams(engine: Engine) -> None:
    result = engine.upscale(np.full((20, 30, 3), 90, np.uint8), refiner="off")
    assert result.seam_score is not None and result.stats()["seam_score"] == pytest.approx(result.seam_score, abs=1e-4)


# --- temperature of the refiner --------------------------------------------------------------------------------------


def test_the_models_color_fix_is_the_default() -> None:
    source, own = picture(16, 16), dataclasses.replace(MICRO, color_fix="none")
    plain = engine_of(own).upscale(source)
    assert same(plain, engine_of().upscale(source, color_fix="none"))
    assert not same(plain, engine_of().upscale(source))


@pytest.mark.parametrize("size", [(4, 4), (16, 16)], ids=["one tile", "tiles"])
def test_fidelity_mixes_in_the_resized_input(size: tuple[int, int]) -> None:
    source, engine = picture(*size), engine_of()
    own, mixed, plain = (engine.upscale(source, fidelity=w).picture.rgb for w in (0.0, 0.25, 1.0))
    assert np.abs(mixed - (0.75 * own + 0.25 * plain)).max() < 1e-5
    assert np.abs(own - plain).max() > 1e-3
    assert np.array_equal(engine.upscale(source).picture.rgb, own)
    half = engine_of(dataclasses.replace(MICRO, fidelity=0.25))
    assert np.array_equal(half.upscale(source).picture.rgb, mixed)


def test_refiner_temperature_scales_all_noise(engine: Engine) -> None:
    lr = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    noise = torch.randn(11, 2, 64, 8)
    half = engine.generate(lr, noise=noise, refiner_temperature=[0.5, 1.0])
    scaled = noise * torch.tensor([0.5, 1.0])[:, None, None]
    assert torch.equal(half.latent, engine.generate(lr, noise=scaled).latent)
    assert not torch.equal(half.latent[0], engine.generate(lr, noise=noise).latent[0])
    assert torch.equal(engine.generate(lr, refiner_temperature=1.0).latent, engine.generate(lr).latent)


@pytest.mark.parametrize("size", [(8, 8), (14, 9)])
def test_temperature_0_is_the_same_for_every_seed(engine: Engine, size: tuple[int, int]) -> None:
    source = picture(*size)
    cold = [engine.upscale(source, seed=seed, refiner_temperature=0) for seed in (1, 2)]
    assert same(*cold) and not same(cold[0], engine.upscale(source, seed=1, refiner="off"))


def test_the_model_has_a_default_temperature() -> None:
    cold = engine_of(dataclasses.replace(MICRO, refiner_temperature=0.0))
    source = picture(8, 8)
    assert same(cold.upscale(source, seed=1), cold.upscale(source, seed=2))
    assert same(cold.upscale(source, seed=1, refiner_temperature=1.0), engine_of().upscale(source, seed=1))


# --- into a file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4], ids=["gray", "rgb", "rgba"])
@pytest.mark.parametrize("format", ["png", "tif"])
def test_a_file_written_by_rows_is_the_one_written_whole(
    engine: Engine, tmp_path: Path, channels: int, format: str
) -> None:
    source = picture(23, 17, channels=channels)
    source = source[..., 0] if channels == 1 else source
    whole = engine.upscale(source, seed=3)
    report, lost = engine.upscale_to(source, tmp_path / f"rows.{format}", seed=3)
    whole.save(tmp_path / f"whole.{format}")
    with Image.open(tmp_path / f"rows.{format}") as rows, Image.open(tmp_path / f"whole.{format}") as expected:
        assert rows.mode == expected.mode and np.array_equal(np.asarray(rows), np.asarray(expected))
    assert lost == [] and report.stats().keys() == whole.stats().keys()
    assert (report.tiles, report.size, report.seed) == (whole.tiles, whole.size, whole.seed)
    assert report.seam_score == pytest.approx(whole.seam_score)


def test_other_formats_and_single_tiles_are_written_whole(engine: Engine, tmp_path: Path) -> None:
    report, lost = engine.upscale_to(picture(12, 12, channels=4), tmp_path / "a.jpg")
    assert report.tiles == 4 and lost == ["JPEG has no alpha channel: the transparency was dropped"]
    report, _ = engine.upscale_to(picture(8, 8), tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert image.size == report.size == (32, 32)


def test_an_error_leaves_no_file(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> Any:
        yield torch.zeros(3, 4, 92)
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(engine._pipeline, "decode_in_bands", fail)
    with pytest.raises(RuntimeError, match="the device is gone"):
        engine.upscale_to(picture(23, 17), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_rows_are_told_and_may_be_the_last(engine: Engine, tmp_path: Path) -> None:
    """on_rows hears how far the file is; what it raises ends the call, and leaves no file."""
    source, heard = picture(23, 17), list[tuple[int, int]]()
    report, _ = engine.upscale_to(source, tmp_path / "a.png", on_rows=lambda done, total: heard.append((done, total)))
    rows = [done for done, _ in heard]
    assert rows == sorted(set(rows)) and heard[-1] == (report.size[1], report.size[1])

    def enough(done: int, total: int) -> None:
        raise RequestCancelled("enough")

    with pytest.raises(RequestCancelled):
        engine.upscale_to(source, tmp_path / "b.png", on_rows=enough)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
