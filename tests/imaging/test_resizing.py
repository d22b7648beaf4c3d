"""Resizing equals Pillow's 8-bit resize bit for bit, and keeps more than 8 bits where there are more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from varsr_engine.imaging import resize_alpha, resize_rgb, to_network_input

from .samples import pixels


@pytest.mark.parametrize("source", [(24, 40), (1, 1), (97, 33), (130, 257)])
@pytest.mark.parametrize("size", [(64, 64), (51, 20), (1, 1)])
@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
def test_eight_bit_is_pillows_resize(
    source: tuple[int, int], size: tuple[int, int], resample: Image.Resampling
) -> None:
    samples = pixels(*source)
    expected = np.asarray(Image.fromarray(samples).resize(size, resample))
    resized = resize_rgb(samples.astype(np.float32) / np.float32(255), size, eight_bit=True, resample=resample)
    assert resized.dtype == np.float32 and resized.shape == (size[1], size[0], 3)
    np.testing.assert_array_equal(resized, expected.astype(np.float32) / np.float32(255))


def test_bicubic_is_pillows_default() -> None:
    samples = pixels(24, 40)
    expected = np.asarray(Image.fromarray(samples).resize((512, 512)))
    resized = resize_rgb(samples.astype(np.float32) / np.float32(255), (512, 512), eight_bit=True)
    np.testing.assert_array_equal(np.rint(resized * 255), expected)


def test_float_keeps_more_than_eight_bits() -> None:
    rgb = np.random.default_rng(0).random((20, 30, 3), np.float32) * np.float32(0.5) + np.float32(0.25)
    fine, coarse = resize_rgb(rgb, (75, 50)), resize_rgb(rgb, (75, 50), eight_bit=True)
    assert 0 < np.abs(fine - coarse).max() < 3 / 255
    assert np.abs(fine * 255 - np.rint(fine * 255)).max() > 0.4


def test_float_overshoot_is_clamped() -> None:
    edge = np.zeros((8, 8, 3), np.float32)
    edge[:, 4:] = 1
    expected = Image.fromarray(edge[..., 0]).resize((30, 24))
    assert np.asarray(expected).min() < 0 and np.asarray(expected).max() > 1
    np.testing.assert_array_equal(resize_rgb(edge, (30, 24))[..., 1], np.asarray(expected).clip(0, 1))


@pytest.mark.parametrize("eight_bit", [False, True])
def test_same_size_is_untouched(eight_bit: bool) -> None:
    rgb = np.random.default_rng(0).random((5, 7, 3), np.float32)
    assert resize_rgb(rgb, (7, 5), eight_bit) is rgb
    assert resize_alpha(rgb[..., 0], (7, 5)).base is rgb


def test_a_constant_stays_constant() -> None:
    rgb = np.full((9, 5, 3), 0.3, np.float32)
    np.testing.assert_allclose(resize_rgb(rgb, (31, 17)), 0.3, rtol=1e-6)


def test_alpha_is_lanczos_and_clamped() -> None:
    alpha = np.zeros((8, 8), np.float32)
    alpha[:, 4:] = 1
    resized = resize_alpha(alpha, (32, 24))
    expected = Image.fromarray(alpha).resize((32, 24), Image.Resampling.LANCZOS)
    assert np.asarray(expected).max() > 1
    np.testing.assert_array_equal(resized, np.asarray(expected).clip(0, 1))


def test_network_input() -> None:
    rgb = np.random.default_rng(0).random((4, 6, 3), np.float32)
    tensor = to_network_input(rgb)
    assert tensor.shape == (1, 3, 4, 6) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    torch.testing.assert_close(tensor[0, 2, 1], torch.from_numpy(rgb[1, :, 2]) * 2 - 1, rtol=0, atol=0)
    assert to_network_input(np.ones((1, 1, 3), np.float32)).flatten().tolist() == [1, 1, 1]
