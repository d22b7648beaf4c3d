"""Statistics of natural pictures, block by block: what NIQE knows of a picture.

A picture of a scene, locally normalised, is close to Gaussian, and products of neighbours follow an asymmetric
generalised Gaussian; blur, noise and compression change their shapes. Source: Mittal, Soundararajan & Bovik, "Making a
completely blind image quality analyzer", IEEE Signal Processing Letters 2013. Where the paper leaves a choice (how
products wrap, in what steps a shape is searched) this is that of the authors' release, so that its parameters fit.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from varsr_engine.evaluation.full_reference import filtered, gaussian_weights
from varsr_engine.evaluation.luminance import Plane

BLOCK = 96  # pixels a side at the first scale, of the paper
NUM_FEATURES = 36  # 18 at each of two scales
WINDOW, SIGMA = 7, 7 / 6  # of the Gaussian that normalises
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # rows, columns that a block is turned by before the product
_STABILISER = 1.0  # in levels of 8 bits
_RESIDUE = 1e-9  # of levels: a thousand times what float64 leaves of 255, far below what one level in a corner makes


def block_features(y: Plane, across: Plane | None = None, down: Plane | None = None) -> tuple[Plane, Plane]:
    """Luminance (H, W) in levels of 8 bits → (N, 36) features and (N,) sharpness of its whole 96×96 blocks, by rows.

    What is left over at the right and below does not count. A feature that a block does not have (one without negative
    or positive values: flat) is NaN. sharpness: mean local deviation at the first scale. across, down: weights of the
    normalising window along each axis, (7,) each with sum 1; None: the Gaussian of σ 7/6.
    """
    rows, columns = (n // BLOCK for n in y.shape)
    if rows * columns == 0:
        raise ValueError(f"block_features: y must be at least {BLOCK}×{BLOCK} pixels, got {y.shape}")
    weights = gaussian_weights(WINDOW, SIGMA)
    window = (weights if down is None else down, weights if across is None else across)
    y = y[: rows * BLOCK, : columns * BLOCK]
    normal, deviation = normalised(y, *window)
    sharpness = _blocks(deviation, BLOCK).mean(axis=(1, 2))
    fine = _features(_blocks(normal, BLOCK))
    normal, _ = normalised(half_size(y), *window)
    coarse = _features(_blocks(normal, BLOCK // 2))
    return np.concatenate([fine, coarse], axis=1), sharpness


def normalised(y: Plane, down: Plane, across: Plane) -> tuple[Plane, Plane]:
    """((y - μ)/(σ + 1), σ): local mean and deviation under the window, edges repeated outwards. (H, W) each."""
    padded = np.pad(y, len(down) // 2, mode="edge")
    mean = filtered(padded, down, across)
    deviation = np.sqrt(np.abs(filtered(padded * padded, down, across) - mean * mean))
    difference = y - mean
    # Where a window is flat this is 0, and what rounding leaves would be taken for a sign by `fit_aggd`.
    difference[np.abs(difference) < _RESIDUE] = 0
    return difference / (deviation + _STABILISER), deviation


def half_size(y: Plane) -> Plane:
    """(H, W), both even → (H/2, W/2): bicubic (a = -½) stretched to 8 taps, edges mirrored, as MATLAB's imresize."""
    distance = np.abs(np.arange(8) - 3.5) / 2
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    taps = np.where(distance <= 1, near, far)
    taps /= taps.sum()
    return filtered(np.pad(y, 3, mode="symmetric"), taps, taps)[::2, ::2]


def fit_aggd(samples: Plane) -> tuple[Plane, Plane, Plane]:
    """(N, P) samples → (N,) each: shape α, scales β_l and β_r of an asymmetric generalised Gaussian, by its moments.

    Density ∝ exp(-(-x/β_l)^α) left of 0 and exp(-(x/β_r)^α) right of it. α is searched in [0.2, 10] by thousandths.
    NaN where no sample is negative, or none positive.
    """
    squares = samples * samples
    left, right = samples < 0, samples > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation_left = np.sqrt((squares * left).sum(axis=1) / left.sum(axis=1))
        deviation_right = np.sqrt((squares * right).sum(axis=1) / right.sum(axis=1))
        ratio = deviation_left / deviation_right
        moments = np.abs(samples).mean(axis=1) ** 2 / squares.mean(axis=1)
        wanted = moments * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shapes, moment_ratios, scales = _shape_table()
    after = np.searchsorted(moment_ratios, wanted).clip(1, len(shapes) - 1)  # NaN is sorted last
    nearest = after - (wanted - moment_ratios[after - 1] < moment_ratios[after] - wanted)
    alpha = np.where(np.isfinite(wanted), shapes[nearest], np.nan)
    return alpha, deviation_left * scales[nearest], deviation_right * scales[nearest]


@cache
def _shape_table() -> tuple[Plane, Plane, Plane]:
    """By rising shape α: α, Γ(2/α)²/(Γ(1/α)Γ(3/α)), and √(Γ(1/α)/Γ(3/α)), the scale of a deviation of 1."""
    shapes = np.arange(200, 10_001) / 1000
    one, two, three = (_log_gamma(k / shapes) for k in (1, 2, 3))
    return shapes, np.exp(2 * two - one - three), np.exp((one - three) / 2)


def _log_gamma(x: Plane) -> Plane:
    return np.array([math.lgamma(value) for value in x])


def _blocks(plane: Plane, side: int) -> Plane:
    """(H, W), whole blocks → (N, side, side), by rows."""
    height, width = plane.shape
    blocks = plane.reshape(height // side, side, width // side, side).swapaxes(1, 2)
    return blocks.reshape(-1, side, side)


def _features(blocks: Plane) -> Plane:
    """(N, side, side) normalised → (N, 18): α and mean β, then α, η, β_l, β_r of products with each neighbour."""
    alpha, left, right = fit_aggd(blocks.reshape(len(blocks), -1))
    columns = [alpha, (left + right) / 2]
    for shift in _NEIGHBOURS:
        products = blocks * np.roll(blocks, shift, axis=(1, 2))
        alpha, left, right = fit_aggd(products.reshape(len(blocks), -1))
        with np.errstate(invalid="ignore"):
            mean = (right - left) * np.exp(_log_gamma(2 / alpha) - _log_gamma(1 / alpha))  # η of the paper
        columns += [alpha, mean, left, right]
    return np.stack(columns, axis=1)
