"""Decoding in windows: exact for one window, seamless for many, and bounded."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.engine.test_tiling import CPU, MICRO, engine_of, picture, same
from varsr_engine import Engine
from varsr_engine.config import ModelConfig
from varsr_engine.engine import decoding
from varsr_engine.engine.convolutions import Convolutional
from varsr_engine.engine.decoding import band_bytes, decode_in_bands, window_axis, window_shape
from varsr_engine.engine.group_statistics import GroupStatistics
from varsr_engine.engine.latent_rows import LatentRows
from varsr_engine.engine.memory import decoder_bytes
from varsr_engine.errors import NumericalError, OutputError
from varsr_engine.imaging.picture_rows import PictureRows


def latent(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth with detail: neighbouring windows have different contents."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = torch.stack([torch.sin(y / (7 + c) + x / (11 - c)) * (1 + x / width) for c in range(MICRO.latent_channels)])
    return waves + 0.2 * torch.randn(waves.shape, generator=torch.Generator().manual_seed(seed))


def bands_of(z: torch.Tensor, side: int) -> list[torch.Tensor]:
    decoder = engine_of()._pipeline._decoder

    def decode(loaded: Convolutional) -> list[torch.Tensor]:
        with torch.inference_mode():
            return list(decode_in_bands(loaded, LatentRows.of(z), CPU, (side, side), MICRO.downsample))

    return decoder.run(decode)


@given(st.integers(1, 300), st.sampled_from([8, 16, 32, 64]), st.sampled_from([4, 16]), st.sampled_from([1, 8, 32]))
@settings(max_examples=80, deadline=None)
def test_every_pixel_is_wholly_decoded(length: int, side: int, downsample: int, least: int) -> None:
    axis = window_axis(length, side, downsample, least)
    assert axis.side <= side or axis.side == length
    assert axis.side >= min(length, side, least)
    total = torch.zeros(length * downsample)
    for start, weight in zip(axis.starts, axis.weights, strict=True):
        assert start >= 0 and start + axis.side <= length
        assert (weight >= 0).all()
        total[start * downsample : (start + axis.side) * downsample] += weight
    torch.testing.assert_close(total, torch.ones_like(total))
    assert all(second < first + axis.side for first, second in pairwise(axis.starts))


def test_windows_are_no_larger_than_they_need_to_be() -> None:
    assert (window_axis(128, 64, 4).starts, window_axis(128, 64, 4).side) == ((0, 40, 80), 48)
    assert (window_axis(33, 32, 4, 32).starts, window_axis(33, 32, 4, 32).side) == ((0, 1), 32)


def test_inner_edges_do_not_count() -> None:
    axis = window_axis(104, 32, 4)
    assert axis.starts == (0, 24, 48, 72) and axis.side == 32
    assert (axis.weights[0][-8:] == 0).all() and (axis.weights[1][:8] == 0).all()
    assert (axis.weights[0][:90] == 1).all()


@pytest.mark.parametrize("size", [(8, 8), (5, 30), (16, 16)])
def test_one_window_is_the_whole(size: tuple[int, int]) -> None:
    z = latent(*size)
    (band,) = bands_of(z, 30)
    with torch.inference_mode():
        assert torch.equal(band, engine_of()._pipeline._decoder.run(lambda d: d(z[None]))[0])


@pytest.fixture(scope="module")
def photograph() -> tuple[Engine, torch.Tensor]:
    """varsr-mini and the latent (Z, 64, 64) of a photograph of nine tiles."""
    engine, latents = Engine.from_pretrained("varsr-mini", device="cpu"), []
    decode = engine._pipeline.decode_in_bands

    def record(z: LatentRows, *rest: Any) -> Iterator[torch.Tensor]:
        latents.append(z.whole())
        return decode(z, *rest)

    engine._pipeline.decode_in_bands = record  # type: ignore[method-assign]
    with Image.open(Path(__file__).parents[2] / "examples" / "photo.jpg") as image:
        engine.upscale(image.convert("RGB").crop((0, 0, 64, 64)))
    return engine, latents[0]


def decoded(photograph: tuple[Engine, torch.Tensor], side: int) -> torch.Tensor:
    engine, z = photograph
    f = engine.model_config.downsample
    with torch.inference_mode():
        return torch.cat(
            engine._pipeline._decoder.run(
                lambda d: list(decode_in_bands(d, LatentRows.of(z), CPU, (side, side), f, least=side))
            ),
            dim=1,
        )


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """In dB, of images in [-1, 1]."""
    return -10 * math.log10(((a - b) / 2).square().mean().item())


def test_windows_are_near_the_whole_and_show_no_edges(
    photograph: tuple[Engine, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared statistics bring windows near the whole (47.9 dB, 40.8 without), and leave no step where a window ends."""
    expected, image = decoded(photograph, 64), decoded(photograph, 32)
    assert psnr(image, expected) >= 46
    steps = (image - expected).diff(dim=2).abs().mean((0, 1))
    edges = [start * 4 for start in window_axis(64, 32, 4, 32).starts[1:]]
    assert all(steps[edge - 1] <= 2 * steps.median() for edge in edges)
    each_its_own = contextlib.nullcontext()
    monkeypatch.setattr(GroupStatistics, "shared", lambda self, moments: each_its_own)
    assert psnr(decoded(photograph, 32), expected) <= 43


def test_sizes_follow_the_budget() -> None:
    published = ModelConfig.varsr_d24()
    assert window_shape(published, 100, 4) == (published.latent_side,) * 2  # a tile takes what it takes
    assert window_shape(MICRO, 100, 4) == (64, 64)
    assert window_shape(MICRO, 100, 4, budget=decoder_bytes(MICRO, (16 * 4) ** 2, 4)) == (16, 16)


def test_wide_images_have_low_windows() -> None:
    assert band_bytes(64 * 4, 2000 * 4) > decoding.BAND_BYTES >= band_bytes(32 * 4, 2000 * 4)
    assert window_shape(MICRO, 2000, 4) == (32, 64)
    assert window_shape(MICRO, 10**6, 4) == (MICRO.latent_side, 64)


def test_bands_are_cut_to_what_is_finished_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    z = latent(40, 20)
    expected = torch.cat(bands_of(z, 16), dim=1)
    monkeypatch.setattr(decoding, "SLICE_BYTES", band_bytes(7, 80))
    pieces = bands_of(z, 16)
    assert max(piece.shape[1] for piece in pieces) == 7 and torch.equal(torch.cat(pieces, dim=1), expected)
    assert max(piece.shape[1] for piece in bands_of(z, 64)) == 7  # in one window too


def test_a_pixel_that_is_not_finite_is_an_error() -> None:
    z = latent(9, 9)
    z[0, 4, 4] = float("nan")
    with pytest.raises(NumericalError):
        list(engine_of()._pipeline.decode_in_bands(LatentRows.of(z)))


def test_an_image_left_half_decoded_changes_no_other() -> None:
    """Its statistics and its turn on the device end with each band, not with the image."""
    engine = engine_of(memory_budget=1024 * 1024)  # windows of one tile
    small, large = latent(8, 8), latent(30, 20)
    expected, whole = (
        list(engine._pipeline.decode_in_bands(LatentRows.of(small))),
        list(engine._pipeline.decode_in_bands(LatentRows.of(large))),
    )
    half = engine._pipeline.decode_in_bands(LatentRows.of(large))
    first = next(half)
    assert len(whole) > 2 and torch.equal(first, whole[0])
    assert torch.equal(next(engine._pipeline.decode_in_bands(LatentRows.of(small))), expected[0])
    assert all(torch.equal(a, b) for a, b in zip(half, whole[1:], strict=True))


def test_a_writer_that_fails_gives_the_device_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(memory_budget=1024 * 1024)
    source = picture(30, 20)
    expected = engine.upscale(source)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PictureRows, "write", full)
    with pytest.raises(OutputError, match="the disk is full") as kept:  # and with it the frames it went through
        engine.upscale_to(source, tmp_path / "a.png")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(engine.upscale, source).result(60)
    assert same(other, expected) and kept.value is not None
