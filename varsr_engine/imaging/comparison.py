"""A picture that shows an upscaling beside what it came from: input pixels, bicubic, result."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from varsr_engine.imaging.picture import FloatArray, Picture
from varsr_engine.imaging.resizing import resize_rgb
from varsr_engine.imaging.samples import to_uint8

LABELS = ("input", "bicubic", "varsr")
_BACKGROUND, _INK = (255, 255, 255), (32, 32, 32)


def comparison(source: Picture, result: Picture) -> Picture:
    """The source's pixels as they are, its bicubic resize and the result, labelled, all of the result's size.

    Transparent parts are shown on white.
    """
    shown, size = _on_white(source), result.size
    panels = (
        resize_rgb(shown, size, eight_bit=True, resample=Image.Resampling.NEAREST),
        resize_rgb(shown, size, eight_bit=True),
        _on_white(result),
    )
    width, height = size
    text = max(10, min(24, width // 16))
    gap, band = max(2, text // 4), text + text // 2
    canvas = Image.new("RGB", (3 * width + 2 * gap, height + band), _BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(text)
    for i, (label, panel) in enumerate(zip(LABELS, panels, strict=True)):
        left = i * (width + gap)
        canvas.paste(Image.fromarray(to_uint8(panel)), (left, band))
        draw.text((left + width / 2, band / 2), label, fill=_INK, font=font, anchor="mm")
    pixels = np.asarray(canvas, dtype=np.float32) / np.float32(255)
    return Picture(pixels, icc_profile=None if source.gray else source.icc_profile)


def _on_white(picture: Picture) -> FloatArray:
    if picture.alpha is None:
        return picture.rgb
    alpha = picture.alpha[..., None]
    blended: FloatArray = picture.rgb * alpha + (1 - alpha)
    return blended
