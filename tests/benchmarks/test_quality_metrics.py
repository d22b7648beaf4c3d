"""The quality metrics against values worked out by hand, and against scikit-image where it is installed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from benchmarks.quality.metrics import (
    GMSD_C,
    METRICS,
    Pixels,
    chrominance,
    color_error,
    gmsd,
    high_frequency_energy,
    psnr_y,
    ssim_y,
)
from varsr_engine.evaluation.luminance import luminance


def picture(side: int = 64, seed: int = 0) -> Pixels:
    """Smooth waves with some texture."""
    y, x = np.mgrid[:side, :side] / 8
    waves = np.stack([np.sin(x + y), np.cos(x - y), np.sin(2 * x)], axis=-1) * 60 + 128
    noise = np.random.default_rng(seed).normal(0, 12, (side, side, 3))
    return np.clip(waves + noise, 0, 255).astype(np.uint8)


def gray(value: int, side: int = 32) -> Pixels:
    return np.full((side, side, 3), value, dtype=np.uint8)


def blurred(image: Pixels, factor: int) -> Pixels:
    side = image.shape[0]
    small = Image.fromarray(image).resize((side // factor, side // factor), Image.Resampling.BICUBIC)
    return np.array(small.resize((side, side), Image.Resampling.BICUBIC))


def test_equal_pictures_are_perfect() -> None:
    image = picture()
    assert math.isinf(psnr_y(image, image))
    assert ssim_y(image, image) == pytest.approx(1)
    assert gmsd(image, image) == pytest.approx(0, abs=1e-12)
    assert high_frequency_energy(image, image) == pytest.approx(1)
    assert color_error(image, image) == 0


def test_luminance_of_black_white_and_red() -> None:
    assert luminance(gray(0, 1)).item() == pytest.approx(16)
    assert luminance(gray(255, 1)).item() == pytest.approx(16 + 65.481 + 128.553 + 24.966)
    red = np.array([[[255, 0, 0]]], dtype=np.uint8)
    assert luminance(red).item() == pytest.approx(16 + 65.481)
    np.testing.assert_allclose(chrominance(gray(77, 1)), 0, atol=1e-9)
    assert chrominance(red)[0, 0, 1] == pytest.approx(127.5)


def test_constant_offset() -> None:
    """10 levels of gray are 10·219/255 of Y; SSIM of flat pictures is its luminance term alone."""
    a, b = gray(100), gray(110)
    offset = 10 * 219 / 255
    assert psnr_y(b, a) == pytest.approx(20 * math.log10(255 / offset))
    x, y, c = 16 + 100 * 219 / 255, 16 + 110 * 219 / 255, (0.01 * 255) ** 2
    assert ssim_y(b, a) == pytest.approx((2 * x * y + c) / (x * x + y * y + c))
    assert gmsd(b, a) == pytest.approx(0, abs=1e-12)  # no gradient in either
    assert color_error(b, a) == pytest.approx(0, abs=1e-9)


def test_gmsd_of_a_step_that_is_lost() -> None:
    """A black to white step against flat gray: two columns of gradient 1 against 0, similarity c/(1 + c) there."""
    truth = gray(0, 32)
    truth[:, 16:] = 255
    share = 2 / 14  # 16 columns after halving, 14 without the outermost
    low = GMSD_C / (1 + GMSD_C)
    assert gmsd(gray(128, 32), truth) == pytest.approx((1 - low) * math.sqrt(share * (1 - share)), rel=1e-6)


def test_energy_counts_only_what_is_above_an_eighth_of_a_cycle() -> None:
    x = np.arange(128)

    def waves(amplitude_low: float, amplitude_high: float) -> Pixels:
        row = 128 + amplitude_low * np.cos(2 * np.pi * x / 16) + amplitude_high * np.cos(2 * np.pi * x / 4)
        return np.repeat(np.tile(row.round()[None, :, None], (128, 1, 1)), 3, axis=2).astype(np.uint8)

    assert high_frequency_energy(waves(10, 20), waves(40, 40)) == pytest.approx(0.25, rel=0.01)
    assert high_frequency_energy(waves(40, 0), waves(40, 40)) < 0.001
    assert high_frequency_energy(waves(0, 80), waves(0, 40)) == pytest.approx(4, rel=0.01)


def test_color_error_sees_a_tint_and_not_fine_noise() -> None:
    image = gray(100, 64)
    tinted = image.copy()
    tinted[..., 2] += 10
    blue = np.hypot(0.5 * 10, 0.081312 * 10) / math.sqrt(2)
    assert color_error(tinted, image) == pytest.approx(blue, rel=1e-6)
    checkered = image.copy()
    checkered[::2, ::2, 2] += 20
    checkered[1::2, 1::2, 2] -= 20
    assert color_error(checkered, image) == pytest.approx(0, abs=1e-9)


def test_metrics_worsen_with_blur_and_noise() -> None:
    image = picture(96)
    noise = np.random.default_rng(1).normal(0, 1, image.shape)
    noisy = [np.clip(image + s * noise, 0, 255).astype(np.uint8) for s in (2, 8, 24)]
    soft = [blurred(image, f) for f in (2, 4, 8)]
    for series in (noisy, soft):
        assert np.all(np.diff([psnr_y(p, image) for p in series]) < 0)
        assert np.all(np.diff([ssim_y(p, image) for p in series]) < 0)
        assert np.all(np.diff([gmsd(p, image) for p in series]) > 0)
    assert np.all(np.diff([high_frequency_energy(p, image) for p in noisy]) > 0)
    assert np.all(np.diff([high_frequency_energy(p, image) for p in soft]) < 0)


@pytest.mark.parametrize("name", METRICS)
def test_wrong_pictures(name: str) -> None:
    metric = METRICS[name]
    with pytest.raises(ValueError, match="shape of the truth"):
        metric(gray(1, 32), gray(1, 40))
    with pytest.raises(TypeError, match="picture must be uint8"):
        metric(gray(1).astype(np.float32), gray(1))  # type: ignore[arg-type]
    if name != "psnr_y":  # the others have windows
        with pytest.raises(ValueError, match="at least 11×11"):
            metric(gray(1, 8), gray(1, 8))


def test_against_scikit_image() -> None:
    skimage = pytest.importorskip("skimage.metrics")
    truth, other = picture(80), blurred(picture(80), 4)
    y, y_other = luminance(truth), luminance(other)
    expected = skimage.peak_signal_noise_ratio(y, y_other, data_range=255)
    assert psnr_y(other, truth) == pytest.approx(expected, rel=1e-9)
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)
    expected = skimage.structural_similarity(y, y_other, **options)  # its mean also leaves 5 pixels of border out
    assert ssim_y(other, truth) == pytest.approx(expected, rel=1e-9)
