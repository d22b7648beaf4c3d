"""Synthetic images: repeatable, and statistically what the literature says of photographs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from varsr_engine.training.synthetic import SMALLEST_SIDE, dead_leaves
from varsr_engine.training.textures import TILE, Group, group_size, power_law, texture

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def images() -> list[Pixels]:
    return [dead_leaves(256, seed) for seed in range(12)]


def gray(image: Pixels) -> NDArray[np.float64]:
    return image @ np.array([0.299, 0.587, 0.114])


def amplitude_slope(image: Pixels) -> float:
    """Slope of log amplitude over log frequency, from 4 cycles an image to 0.4 a pixel."""
    side = image.shape[0]
    window = np.hanning(side)
    luma = gray(image)
    power = np.abs(np.fft.fft2((luma - luma.mean()) * np.outer(window, window))) ** 2
    axis = np.fft.fftfreq(side)
    radius = np.hypot(axis[:, None], axis)
    edges = np.geomspace(4 / side, 0.4, 13)
    rings = [power[(radius >= low) & (radius < high)].mean() for low, high in pairwise(edges)]
    return float(np.polyfit(np.log(np.sqrt(edges[1:] * edges[:-1])), np.log(rings), 1)[0] / 2)


@pytest.mark.parametrize("side", [SMALLEST_SIDE, 33, 100])
def test_an_image_is_a_function_of_side_and_seed(side: int) -> None:
    first = dead_leaves(side, 5)
    assert first.shape == (side, side, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, dead_leaves(side, 5))
    assert not np.array_equal(first, dead_leaves(side, 6))


def test_another_process_makes_the_same_image() -> None:
    code = (
        "import hashlib; from varsr_engine.training.synthetic import dead_leaves;"
        "dead_leaves(40, 1); print(hashlib.sha256(dead_leaves(64, 9).tobytes()).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == hashlib.sha256(dead_leaves(64, 9).tobytes()).hexdigest()


def test_global_random_state_is_neither_read_nor_changed() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    dead_leaves(32, 2)
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]


@pytest.mark.parametrize("side, seed, message", [(15, 0, "side must be at least 16"), (64, -1, "must not be negative")])
def test_arguments_are_checked(side: int, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dead_leaves(side, seed)


def test_small_and_many_seeds_paint_without_an_error() -> None:
    for seed in range(40):
        dead_leaves(24, seed)


def test_the_amplitude_spectrum_falls_like_1_over_f(images: list[Pixels]) -> None:
    slopes = [amplitude_slope(image) for image in images]
    assert -1.35 < np.mean(slopes) < -0.9
    assert min(slopes) > -1.8
    assert max(slopes) < -0.5


def test_differences_have_the_heavy_tails_of_photographs(images: list[Pixels]) -> None:
    """Huang and Mumford (1999) found a kurtosis of 17 for the log intensity of photographs; a Gaussian has 3."""
    kurtoses = []
    for image in images:
        difference = np.diff(gray(image), axis=1)
        kurtoses.append(float(np.mean((difference / difference.std()) ** 4)))
    assert 10 < np.median(kurtoses) < 50


def test_tones_and_colours_vary_within_and_between_images(images: list[Pixels]) -> None:
    luma = np.stack([gray(image) for image in images])
    assert 85 < luma.mean() < 140
    assert luma.std(axis=(1, 2)).min() > 10
    assert 30 < luma.std(axis=(1, 2)).mean() < 70
    assert luma.mean(axis=(1, 2)).std() > 8
    spread = np.stack([np.ptp(image.astype(int), axis=2).mean() for image in images])
    assert 10 < spread.mean() < 90, "neither gray nor gaudy"
    assert spread.std() > 5


def test_there_are_smooth_and_busy_places(images: list[Pixels]) -> None:
    patches = np.concatenate([gray(i).reshape(16, 16, 16, 16).std(axis=(1, 3)).ravel() for i in images])
    assert 0.02 < np.mean(patches < 3) < 0.45
    assert 0.03 < np.mean(patches > 40) < 0.35


def test_edges_are_sharp(images: list[Pixels]) -> None:
    """Every image has steps between neighbours that a blur of one pixel would flatten."""
    for image in images:
        assert np.quantile(np.abs(np.diff(gray(image), axis=1)), 0.999) > 25


@pytest.mark.parametrize("group", get_args(Group))
def test_textures_tile_and_use_the_gray_range(group: Group) -> None:
    assert group_size(group) >= 4
    for number in range(group_size(group)):
        plane = np.asarray(texture(group, number))
        assert plane.shape == (2 * TILE, 2 * TILE)
        assert np.array_equal(plane[:TILE], plane[TILE:])
        assert 100 < plane.mean() < 150
        assert plane.std() > 25


def test_power_law_sizes_cover_the_same_area_in_every_octave() -> None:
    radii = power_law(np.random.default_rng(0), 1.0, 16.0, 400_000)
    areas = [np.sum(radii[(radii >= low) & (radii < 2 * low)] ** 2) for low in (1, 2, 4, 8)]
    assert max(areas) / min(areas) < 1.1
