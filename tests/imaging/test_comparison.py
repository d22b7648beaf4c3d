"""The picture that shows an upscaling beside its input."""

from __future__ import annotations

import numpy as np
import pytest

from varsr_engine.imaging import Picture, resize_rgb
from varsr_engine.imaging.comparison import comparison


def flat(width: int, height: int, value: float, **fields: object) -> Picture:
    return Picture(np.full((height, width, 3), value, np.float32), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(1, 1), (16, 9), (400, 30)])
def test_three_labelled_panels(size: tuple[int, int]) -> None:
    width, height = size
    samples = np.random.default_rng(0).integers(0, 256, (max(1, height // 4), max(1, width // 4), 3))
    rgb = samples.astype(np.float32) / np.float32(255)
    shown = comparison(Picture(rgb), flat(*size, 0.25)).rgb
    gap = (shown.shape[1] - 3 * width) // 2
    assert gap > 0 and shown.shape[0] > height
    panels = [shown[-height:, left : left + width] for left in (0, width + gap, 2 * (width + gap))]
    assert np.array_equal(panels[0][0, 0], rgb[0, 0])
    assert np.array_equal(panels[1], resize_rgb(rgb, size, eight_bit=True))
    assert np.abs(panels[2] - 0.25).max() <= 0.5 / 255 + 1e-6
    assert shown[: -height or None].min() < 0.5  # the labels


def test_transparency_is_shown_on_white() -> None:
    result = flat(8, 8, 0.0, alpha=np.zeros((8, 8), np.float32))
    assert comparison(flat(2, 2, 0.5), result).rgb[-8:, -8:].min() == 1.0


def test_colour_profile_of_the_source() -> None:
    assert comparison(flat(2, 2, 0.5, icc_profile=b"rgb"), flat(8, 8, 0.5)).icc_profile == b"rgb"
    assert comparison(flat(2, 2, 0.5, icc_profile=b"gray", gray=True), flat(8, 8, 0.5)).icc_profile is None
