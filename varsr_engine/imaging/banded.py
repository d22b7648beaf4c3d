"""What follows the decoder, for an image that comes in bands of rows: resizing and colour correction.

Each function takes an image from top to bottom as bands (3, h, W) float32 in [0, 1] on the CPU and gives it on in the
same way, in bands of other heights, with the function's result for whole images, to rounding. Memory is a few bands.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from varsr_engine.errors import InvalidParamsError
from varsr_engine.imaging.color import EPS, WAVELET_REACH, wavelet_color_fix
from varsr_engine.imaging.row_buffer import RowBuffer

Bands = Iterator[Tensor]
StyleRows = Callable[[int, int], Tensor]  # rows top to bottom of the style, (3, h, W), of the image's size
WAVELET_COLUMNS = 1024  # corrected at once, beside the WAVELET_REACH more on each side that they see
SPOOL_BYTES = 32 * 1024 * 1024  # in memory; a larger image waits on the disk for its statistics


def resize_bands(bands: Bands, source: tuple[int, int], size: tuple[int, int]) -> Bands:
    """An image of source = (width, height) resized to size, as `resize_rgb` resizes float images."""
    if source == size:
        yield from bands
        return
    (width, height), ratio = size, source[1] / size[1]
    reach = math.ceil(2 * max(ratio, 1.0)) + 1  # of the bicubic kernel, in rows of the source
    buffer, done = RowBuffer(), 0
    for band in bands:
        buffer.append(band)
        ready = height if buffer.end == source[1] else math.floor((buffer.end - reach) / ratio)
        if ready <= done:
            continue
        low, high = max(0, math.floor(done * ratio) - reach), min(source[1], math.ceil(ready * ratio) + reach)
        part = buffer.take(low, high)
        box = (0.0, done * ratio - low, float(source[0]), min(ready * ratio - low, high - low))
        planes = [
            np.asarray(
                Image.fromarray(np.ascontiguousarray(plane.numpy())).resize(
                    (width, ready - done), Image.Resampling.BICUBIC, box=box
                )
            )
            for plane in part
        ]
        yield torch.from_numpy(np.stack(planes)).clamp_(0, 1)
        done = ready
        buffer.forget(math.floor(done * ratio) - reach)


def color_fix_bands(name: str, bands: Bands, style: StyleRows, height: int) -> Bands:
    """`color_fix` of an image of that height. adain waits for the whole image, on the disk if it is large."""
    if name == "none":
        return bands
    if name == "wavelet":
        return _wavelet_bands(bands, style, height)
    if name == "adain":
        return _adain_bands(bands, style)
    raise InvalidParamsError(f"color_fix must be one of adain, wavelet, none, got {name!r}")


def mix_bands(bands: Bands, style: StyleRows, share: float) -> Bands:
    """(1 - share) image + share style."""
    top = 0
    for band in bands:
        bottom = top + band.shape[1]
        yield band if share == 0 else torch.lerp(band, style(top, bottom), share)
        top = bottom


def _wavelet_bands(bands: Bands, style: StyleRows, height: int) -> Bands:
    """Rows wait for those below that the low frequency reaches."""
    buffer, done = RowBuffer(), 0
    for band in bands:
        buffer.append(band)
        ready = height if buffer.end == height else buffer.end - WAVELET_REACH
        if ready <= done:
            continue
        low, high = max(0, done - WAVELET_REACH), min(height, ready + WAVELET_REACH)
        yield _wavelet_rows(buffer.take(low, high), style(low, high), done - low, ready - low)
        done = ready
        buffer.forget(done - WAVELET_REACH)


def _wavelet_rows(content: Tensor, style: Tensor, top: int, bottom: int) -> Tensor:
    """Rows top to bottom of the corrected content, piece by piece of columns: the correction takes several copies."""
    width = content.shape[2]
    fixed = content.new_empty(3, bottom - top, width)
    for left in range(0, width, WAVELET_COLUMNS):
        right = min(width, left + WAVELET_COLUMNS)
        low, high = max(0, left - WAVELET_REACH), min(width, right + WAVELET_REACH)
        piece = wavelet_color_fix(content[None, :, :, low:high], style[None, :, :, low:high])[0]
        fixed[:, :, left:right] = piece[:, top:bottom, left - low : right - low]
    return fixed


class _Moments:
    """Mean and standard deviation of each channel of an image that comes in bands, in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sum = self._square = torch.zeros(3, dtype=torch.float64)

    def add(self, band: Tensor) -> None:
        values = band.double().flatten(1)
        self._count += values.shape[1]
        self._sum = self._sum + values.sum(1)
        self._square = self._square + values.square().sum(1)

    def mean_std(self) -> tuple[Tensor, Tensor]:
        """(3, 1, 1) each, float32, as `adain_color_fix` takes them."""
        mean = self._sum / self._count
        variance = (self._square - self._count * mean.square()).clamp_min(0) / max(1, self._count - 1)
        return mean.float()[:, None, None], (variance + EPS).sqrt().float()[:, None, None]


def _adain_bands(bands: Bands, style: StyleRows) -> Bands:
    content, colours = _Moments(), _Moments()
    shapes: list[torch.Size] = []
    top = 0
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
        for band in bands:
            content.add(band)
            colours.add(style(top, top + band.shape[1]))
            shapes.append(band.shape)
            spool.write(np.ascontiguousarray(band.numpy()).tobytes())
            top += band.shape[1]
        spool.seek(0)
        (mean, std), (style_mean, style_std) = content.mean_std(), colours.mean_std()
        for shape in shapes:
            values = np.frombuffer(spool.read(4 * shape.numel()), dtype=np.float32).reshape(shape)
            yield ((torch.from_numpy(values.copy()) - mean) / std * style_std + style_mean).clamp(0, 1)
