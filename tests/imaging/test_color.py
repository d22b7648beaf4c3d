"""Colour correction against the published implementation's numbers, and at its edges."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from varsr_engine.errors import InvalidParamsError
from varsr_engine.imaging.color import adain_color_fix, color_fix, wavelet_color_fix

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "imaging.safetensors")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["adain", "wavelet"])
def test_golden(name: str) -> None:
    fixed = color_fix(name, GOLDEN["content"], GOLDEN["style"])
    assert (fixed - GOLDEN[name]).abs().max() <= 1e-6


@pytest.mark.parametrize("name", ["adain", "wavelet"])
def test_images_of_a_batch_are_independent(name: str) -> None:
    content, style = random(3, 3, 20, 30), random(3, 3, 20, 30, seed=1) * 0.5
    together = color_fix(name, content, style)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], color_fix(name, content[i : i + 1], style[i : i + 1]))


def test_adain_uses_the_unbiased_variance() -> None:
    # Sizes differ, and are small: with equal sizes a biased variance would cancel.
    content, style = random(1, 3, 8, 8) * 0.2 + 0.4, random(1, 3, 2, 2, seed=1) * 0.1 + 0.4
    c, s = content.double().flatten(2), style.double().flatten(2)
    scale = ((s.var(2, correction=1) + 1e-5) / (c.var(2, correction=1) + 1e-5)).sqrt()[..., None]
    expected = (c - c.mean(2, keepdim=True)) * scale + s.mean(2, keepdim=True)
    torch.testing.assert_close(adain_color_fix(content, style).double().flatten(2), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["adain", "wavelet"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2)])
def test_tiny_images_stay_finite(name: str, size: tuple[int, int]) -> None:
    fixed = color_fix(name, random(1, 3, *size), random(1, 3, *size, seed=1))
    assert fixed.isfinite().all() and fixed.min() >= 0 and fixed.max() <= 1


@pytest.mark.parametrize("name", ["adain", "wavelet"])
def test_own_colours_and_flat_images(name: str) -> None:
    image = random(1, 3, 24, 24)
    torch.testing.assert_close(color_fix(name, image, image), image)
    flat = torch.full((1, 3, 24, 24), 0.25)
    torch.testing.assert_close(color_fix(name, torch.full_like(flat, 0.75), flat), flat)


@pytest.mark.parametrize("name", ["adain", "wavelet"])
def test_half_precision_computes_in_float32(name: str) -> None:
    content, style = random(1, 3, 24, 24).half(), random(1, 3, 24, 24, seed=1).half()
    fixed = color_fix(name, content, style)
    assert fixed.dtype == torch.float32
    torch.testing.assert_close(fixed, color_fix(name, content.float(), style.float()), rtol=0, atol=0)


def test_none_and_unknown_names() -> None:
    image = random(1, 3, 4, 4)
    assert color_fix("none", image, image) is image
    with pytest.raises(InvalidParamsError, match="adain, wavelet, none"):
        color_fix("lab", image, image)


def test_shapes_are_checked() -> None:
    image = random(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"content must be \[B, 3, H, W\]"):
        adain_color_fix(image[0], image)
    with pytest.raises(ValueError, match="style must be"):
        adain_color_fix(image, random(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"style must be \[1, 3, 4, 4\], got \[1, 3, 4, 5\]"):
        wavelet_color_fix(image, random(1, 3, 4, 5))
