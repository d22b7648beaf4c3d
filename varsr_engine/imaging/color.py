"""Colour correction after decoding: give the output (content) the colours of the resized input (style)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from varsr_engine.errors import InvalidParamsError

EPS = 1e-5
_WAVELET_LEVELS = 5
WAVELET_REACH = 2**_WAVELET_LEVELS - 1  # rows and columns that a pixel's low frequency sees on each side


def color_fix(name: str, content: Tensor, style: Tensor) -> Tensor:
    """The correction called `name`: adain, wavelet or none (content itself). Raises InvalidParamsError otherwise."""
    if name == "none":
        return content
    if name == "adain":
        return adain_color_fix(content, style)
    if name == "wavelet":
        return wavelet_color_fix(content, style)
    raise InvalidParamsError(f"color_fix must be one of adain, wavelet, none, got {name!r}")


def adain_color_fix(content: Tensor, style: Tensor) -> Tensor:
    """clamp((content - mean_c) / std_c * std_s + mean_s, 0, 1), the statistics taken per image and channel.

    content [B, 3, H, W], style [B, 3, H', W'] in [0, 1] → float32 as content. std = sqrt(unbiased variance + 1e-5).
    """
    _check("adain_color_fix", content, style, same_size=False)
    content_mean, content_std = _mean_std(content)
    style_mean, style_std = _mean_std(style)
    return ((content.float() - content_mean) / content_std * style_std + style_mean).clamp(0, 1)


def wavelet_color_fix(content: Tensor, style: Tensor) -> Tensor:
    """clamp(content - low(content) + low(style), 0, 1): details of the content on the low frequency of the style.

    Both [B, 3, H, W] in [0, 1] → float32. low: five à-trous passes of the binomial kernel 1-2-1, dilation 2^i.
    """
    _check("wavelet_color_fix", content, style, same_size=True)
    # The high frequencies of the five levels telescope to content - low(content), and low is linear.
    return (content.float() + _low_frequency(style.float() - content.float())).clamp(0, 1)


def _mean_std(image: Tensor) -> tuple[Tensor, Tensor]:
    image = image.float()
    # One pixel has no unbiased variance (0 / 0); its variance is 0.
    correction = 1 if image.shape[-2] * image.shape[-1] > 1 else 0
    variance, mean = torch.var_mean(image, dim=(2, 3), correction=correction, keepdim=True)
    return mean, (variance + EPS).sqrt()


def _low_frequency(image: Tensor) -> Tensor:
    taps = torch.tensor([1.0, 2.0, 1.0], device=image.device) / 4
    kernel = torch.outer(taps, taps).expand(3, 1, 3, 3).contiguous()
    for level in range(_WAVELET_LEVELS):
        dilation = 2**level
        padded = F.pad(image, (dilation,) * 4, mode="replicate")
        image = F.conv2d(padded, kernel, dilation=dilation, groups=3)
    return image


def _check(op: str, content: Tensor, style: Tensor, *, same_size: bool) -> None:
    if content.ndim != 4 or content.shape[1] != 3:
        raise ValueError(f"{op}: content must be [B, 3, H, W], got {list(content.shape)}")
    fits = style.shape == content.shape if same_size else style.ndim == 4 and style.shape[:2] == content.shape[:2]
    if not fits:
        expected = list(content.shape) if same_size else [*content.shape[:2], "H'", "W'"]
        raise ValueError(f"{op}: style must be {expected}, got {list(style.shape)}")
