"""Metrics that compare a picture with the truth: PSNR, SSIM and MS-SSIM, in float64. No border is cut off.

Each public metric takes the picture and the truth, (H, W, 3) uint8 of one size, and raises TypeError or ValueError for
anything else. PSNR-Y, SSIM-Y and MS-SSIM-Y are what pyiqa computes with test_y_channel=True, color_space="ycbcr".
"""

from __future__ import annotations

import math

import numpy as np

from varsr_engine.evaluation.luminance import Pixels, Plane, check_pair, luminance, whole_levels

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian, in pixels
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # table of Wang, Simoncelli & Bovik 2003, finest first
# The coarsest of the scales must hold a window; sides are halved and rounded up on the way there.
MS_SSIM_LEAST_SIDE = (WINDOW - 1) * 2 ** (len(MS_SSIM_WEIGHTS) - 1) + 1

_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(error: float) -> float:
    """10 log₁₀(255² / error) in dB, of a mean squared error in levels of 8 bits; infinite for 0."""
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def psnr_y(picture: Pixels, truth: Pixels) -> float:
    """PSNR of luminance, unrounded, in dB; infinite for equal pictures."""
    check_pair("PSNR-Y", picture, truth)
    return psnr(float(np.mean((luminance(picture) - luminance(truth)) ** 2)))


def psnr_rgb(picture: Pixels, truth: Pixels) -> float:
    """PSNR over the three channels in dB, of the 8-bit samples; infinite for equal pictures."""
    check_pair("PSNR", picture, truth)
    return psnr(float(np.mean((picture.astype(np.float64) - truth) ** 2)))


def ssim_y(picture: Pixels, truth: Pixels) -> float:
    """Mean of l·max(cs, 0) over windows (see `ssim_terms`), on luminance rounded to whole levels.

    Rounding and the clamp are pyiqa's; the paper (Wang et al. 2004) has neither.
    """
    check_pair("SSIM-Y", picture, truth, WINDOW)
    means, structure = ssim_terms(whole_levels(picture), whole_levels(truth))
    return float(np.mean(means * np.maximum(structure, 0)))


def ms_ssim_y(picture: Pixels, truth: Pixels) -> float:
    """Π over scales of mean(max(cs, 0))^w, and of mean(l·max(cs, 0))^w at the coarsest: 5 scales, w of the paper.

    On luminance rounded to whole levels. A scale is the mean of 2×2 pixels of the one before; the last row or column of
    an odd size is its own neighbour, as in the authors' code. Needs MS_SSIM_LEAST_SIDE pixels a side: smaller pictures
    are an error, for fewer scales or a smaller window would be another metric. Source: Wang, Simoncelli & Bovik 2003.
    """
    check_pair("MS-SSIM-Y", picture, truth, MS_SSIM_LEAST_SIDE)
    x, y = whole_levels(picture), whole_levels(truth)
    score = 1.0
    *finer, coarsest = MS_SSIM_WEIGHTS
    for weight in finer:
        _, structure = ssim_terms(x, y)
        score *= float(np.mean(np.maximum(structure, 0))) ** weight
        x, y = halved(x), halved(y)
    means, structure = ssim_terms(x, y)
    return score * float(np.mean(means * np.maximum(structure, 0))) ** coarsest


def ssim_terms(x: Plane, y: Plane) -> tuple[Plane, Plane]:
    """l = (2μμ' + c₁)/(μ² + μ'² + c₁) and cs = (2σσ' + c₂)/(σ² + σ'² + c₂) of each 11×11 Gaussian window, σ 1.5.

    x, y: (H, W) in levels of 8 bits, c₁ = (0.01·255)², c₂ = (0.03·255)²; windows wholly inside: (H - 10, W - 10) each.
    """
    mean_x, mean_y = _windowed(x), _windowed(y)
    var_x = _windowed(x * x) - mean_x**2
    var_y = _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    means = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    return means, (2 * covariance + _C2) / (var_x + var_y + _C2)


def halved(plane: Plane) -> Plane:
    """(H, W) → (⌈H/2⌉, ⌈W/2⌉): means of 2×2 pixels, the last row and column repeated where a size is odd."""
    height, width = plane.shape
    even = np.pad(plane, ((0, height % 2), (0, width % 2)), mode="edge")
    result: Plane = (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4
    return result


def gaussian_weights(size: int, sigma: float) -> Plane:
    """(size,): exp(-d²/2σ²) of the distance from the middle, with sum 1."""
    weights = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * sigma**2))
    return weights / weights.sum()


def _windowed(plane: Plane) -> Plane:
    weights = gaussian_weights(WINDOW, SIGMA)
    return filtered(plane, weights, weights)


def filtered(plane: Plane, down: Plane, across: Plane) -> Plane:
    """Correlation with the outer product of two 1-D filters, where it lies wholly inside the plane."""
    rows = _correlated(plane, down)
    return _correlated(rows.T, across).T


def _correlated(plane: Plane, weights: Plane) -> Plane:
    """Σ_i w_i·plane[r + i] along the rows' axis."""
    length = plane.shape[0] - len(weights) + 1
    result = np.zeros((length, *plane.shape[1:]))
    for i, weight in enumerate(weights):
        result += weight * plane[i : i + length]
    return result
