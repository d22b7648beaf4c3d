"""PSNR, SSIM and MS-SSIM against closed forms, against the formulas written out, and against scikit-image."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.pictures import blurred, gray, noisy, scene
from varsr_engine.evaluation.full_reference import (
    MS_SSIM_LEAST_SIDE,
    MS_SSIM_WEIGHTS,
    halved,
    ms_ssim_y,
    psnr_rgb,
    psnr_y,
    ssim_y,
)
from varsr_engine.evaluation.luminance import Pixels, Plane, luminance, whole_levels

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
METRICS: list[Callable[[Pixels, Pixels], float]] = [psnr_y, psnr_rgb, ssim_y, ms_ssim_y]


def written_out(x: Plane, y: Plane) -> tuple[float, float]:
    """Mean SSIM and mean structure term, window by window, from weighted moments about the window's own mean."""
    distance = np.arange(11) - 5.0
    weights = np.exp(-(distance[:, None] ** 2 + distance[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    values, structures = [], []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (plane[top : top + 11, left : left + 11] for plane in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
            structure = max(0.0, (2 * covariance + C2) / (var_a + var_b + C2))
            structures.append(structure)
            values.append((2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1) * structure)
    return float(np.mean(values)), float(np.mean(structures))


def test_luminance_of_black_white_and_red() -> None:
    assert luminance(gray(0, 1)).item() == pytest.approx(16)
    assert luminance(gray(255, 1)).item() == pytest.approx(235)
    red = np.array([[[255, 0, 0]]], dtype=np.uint8)
    assert luminance(red).item() == pytest.approx(16 + 65.481)
    assert whole_levels(red).item() == 81


def test_equal_pictures_are_perfect() -> None:
    image = scene(176, 180)
    assert math.isinf(psnr_y(image, image)) and math.isinf(psnr_rgb(image, image))
    assert ssim_y(image, image) == pytest.approx(1) and ms_ssim_y(image, image) == pytest.approx(1)


def test_constant_offset() -> None:
    """10 levels of gray are 10·219/255 of Y; SSIM of flat pictures is its mean term, of Y rounded."""
    assert psnr_y(gray(110), gray(100)) == pytest.approx(20 * math.log10(255 / (10 * 219 / 255)))
    x, y = (round(16 + value * 219 / 255) for value in (100, 110))
    means = (2 * x * y + C1) / (x * x + y * y + C1)
    assert ssim_y(gray(110), gray(100)) == pytest.approx(means)
    flat = gray(110, MS_SSIM_LEAST_SIDE), gray(100, MS_SSIM_LEAST_SIDE)
    assert ms_ssim_y(*flat) == pytest.approx(means ** MS_SSIM_WEIGHTS[-1])  # structure is 1 at every scale


def test_psnr_of_one_channel() -> None:
    other = gray(100)
    other[..., 1] += 6
    assert psnr_rgb(other, gray(100)) == pytest.approx(10 * math.log10(255**2 / (36 / 3)))
    assert psnr_y(other, gray(100)) == pytest.approx(20 * math.log10(255 / (6 * 128.553 / 255)))


@pytest.mark.parametrize("other", ["noise", "blur", "negative"])
def test_ssim_is_its_formula(other: str) -> None:
    truth = scene(29, 40)
    picture = {"noise": noisy(truth, 20), "blur": blurred(truth, 2), "negative": 255 - truth}[other]
    expected, _ = written_out(whole_levels(picture), whole_levels(truth))
    assert ssim_y(picture, truth) == pytest.approx(expected, rel=1e-9)


def test_ms_ssim_is_its_formula() -> None:
    truth = scene(MS_SSIM_LEAST_SIDE, MS_SSIM_LEAST_SIDE + 2)
    picture = noisy(blurred(truth, 1), 10)
    x, y = whole_levels(picture), whole_levels(truth)
    expected = 1.0
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        ssim, structure = written_out(x, y)
        expected *= (ssim if scale == len(MS_SSIM_WEIGHTS) - 1 else structure) ** weight
        x, y = halved(x), halved(y)
    assert x.shape == (6, 6)  # of a scale further on: the last had 11
    assert ms_ssim_y(picture, truth) == pytest.approx(expected, rel=1e-9)


def test_halving_means_four_pixels_and_repeats_an_odd_edge() -> None:
    plane = np.arange(15.0).reshape(3, 5)
    assert halved(plane).tolist() == [[3, 5, 6.5], [10.5, 12.5, 14]]


def test_metrics_fall_with_blur_and_noise() -> None:
    image = scene(176, 176)
    for series in ([noisy(image, s) for s in (3, 10, 30)], [blurred(image, s) for s in (0.7, 1.5, 4)]):
        for metric in METRICS:
            assert np.all(np.diff([metric(picture, image) for picture in series]) < 0), metric


@given(st.integers(0, 1000), st.integers(11, 24), st.integers(11, 24))
def test_ssim_is_symmetric_and_at_most_one(seed: int, height: int, width: int) -> None:
    a, b = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    assert ssim_y(a, b) == pytest.approx(ssim_y(b, a), abs=1e-12)
    assert 0 <= ssim_y(a, b) <= 1


@pytest.mark.parametrize("metric", METRICS)
def test_wrong_pictures(metric: Callable[[Pixels, Pixels], float]) -> None:
    with pytest.raises(ValueError, match="shape of the truth"):
        metric(gray(1, 200), gray(1, 210))
    with pytest.raises(TypeError, match="picture must be uint8, got float32"):
        metric(gray(1).astype(np.float32), gray(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\)"):
        metric(gray(1)[..., 0], gray(1)[..., 0])


def test_too_small_for_a_window() -> None:
    with pytest.raises(ValueError, match="at least 11×11"):
        ssim_y(gray(1, 10), gray(1, 10))
    with pytest.raises(ValueError, match="at least 161×161"):
        ms_ssim_y(gray(1, 160), gray(1, 160))


def test_against_scikit_image() -> None:
    skimage = pytest.importorskip("skimage.metrics")
    truth = scene(80, 90)
    other = blurred(truth, 1)
    y, y_other = luminance(truth), luminance(other)
    assert psnr_y(other, truth) == pytest.approx(skimage.peak_signal_noise_ratio(y, y_other, data_range=255), rel=1e-9)
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True)
    _, values = skimage.structural_similarity(whole_levels(truth), whole_levels(other), **options)
    assert ssim_y(other, truth) == pytest.approx(values[5:-5, 5:-5].mean(), rel=1e-3)  # it does not clamp
