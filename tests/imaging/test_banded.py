"""Images in bands: every step gives what it gives for the whole image."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from varsr_engine.errors import InvalidParamsError
from varsr_engine.imaging import banded
from varsr_engine.imaging.banded import color_fix_bands, mix_bands, resize_bands
from varsr_engine.imaging.color import color_fix
from varsr_engine.imaging.resizing import ResizedView, resize_rgb
from varsr_engine.imaging.row_buffer import RowBuffer


def image(width: int, height: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def in_bands(whole: torch.Tensor, heights: list[int]) -> Iterator[torch.Tensor]:
    top = 0
    while top < whole.shape[1]:
        for height in heights:
            if top < whole.shape[1]:
                yield whole[:, top : top + height]
            top += height


def together(bands: Iterator[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(bands), dim=1)


HEIGHTS = st.lists(st.integers(1, 40), min_size=1, max_size=4)
SIDES = st.integers(1, 90)


@given(SIDES, SIDES, SIDES, SIDES, HEIGHTS)
@settings(max_examples=60, deadline=None)
def test_resizing(width: int, height: int, to_width: int, to_height: int, heights: list[int]) -> None:
    whole = image(width, height)
    result = together(resize_bands(in_bands(whole, heights), (width, height), (to_width, to_height)))
    expected = resize_rgb(np.ascontiguousarray(whole.permute(1, 2, 0).numpy()), (to_width, to_height))
    assert np.abs(result.permute(1, 2, 0).numpy() - expected).max() <= 2e-4


@pytest.mark.parametrize("kind", ["adain", "wavelet", "none"])
@given(width=SIDES, height=SIDES, heights=HEIGHTS, columns=st.integers(1, 100))
@settings(max_examples=25, deadline=None)
def test_colours(kind: str, width: int, height: int, heights: list[int], columns: int) -> None:
    whole, style = image(width, height), image(width, height, seed=1) * 0.5
    bands = color_fix_bands(kind, in_bands(whole, heights), lambda top, bottom: style[:, top:bottom], height)
    with mock.patch.object(banded, "WAVELET_COLUMNS", columns):
        result = together(bands)
    torch.testing.assert_close(result, color_fix(kind, whole[None], style[None])[0], rtol=0, atol=2e-5)


def test_statistics_of_a_large_image_wait_on_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, style = image(50, 40), image(50, 40, seed=1)
    monkeypatch.setattr(banded, "SPOOL_BYTES", 1000)
    bands = color_fix_bands("adain", in_bands(whole, [7]), lambda top, bottom: style[:, top:bottom], 40)
    torch.testing.assert_close(together(bands), color_fix("adain", whole[None], style[None])[0], rtol=0, atol=2e-5)


def test_mixing() -> None:
    whole, style = image(9, 20), image(9, 20, seed=1)
    bands = mix_bands(in_bands(whole, [6]), lambda top, bottom: style[:, top:bottom], 0.25)
    torch.testing.assert_close(together(bands), torch.lerp(whole, style, 0.25))


def test_an_unknown_correction() -> None:
    with pytest.raises(InvalidParamsError, match="color_fix must be one of adain, wavelet, none, got 'lab'"):
        color_fix_bands("lab", iter(()), lambda top, bottom: torch.empty(0), 1)


@given(SIDES, SIDES, SIDES, SIDES, st.data())
@settings(max_examples=60, deadline=None)
def test_parts_of_a_resized_picture(
    width: int, height: int, to_width: int, to_height: int, data: st.DataObject
) -> None:
    rgb = np.ascontiguousarray(image(width, height).permute(1, 2, 0).numpy())
    left, top = data.draw(st.integers(0, to_width - 1)), data.draw(st.integers(0, to_height - 1))
    right, bottom = data.draw(st.integers(left + 1, to_width)), data.draw(st.integers(top + 1, to_height))
    part = ResizedView(rgb, (to_width, to_height)).part(left, top, right, bottom)
    whole = resize_rgb(rgb, (to_width, to_height))[top:bottom, left:right]
    assert part.shape == whole.shape
    assert np.abs(part - whole).max() <= 2e-4


def test_rows_are_forgotten() -> None:
    buffer, whole = RowBuffer(), image(4, 30)
    for band in in_bands(whole, [7]):
        buffer.append(band)
    assert (buffer.start, buffer.end) == (0, 30)
    buffer.forget(15)
    assert buffer.start == 14
    assert torch.equal(buffer.take(15, 29), whole[:, 15:29])
    buffer.forget(30)
    assert buffer.start == buffer.end == 30
