"""NIQE: how far a picture's statistics are from those of good photographs. Lower is better; no truth is needed.

Two Gaussians of 36 features are compared: of the picture's blocks, and of the sharp blocks of pristine photographs. The
latter are parameters, and scores with different ones are not comparable: `varsr_engine.evaluation.fit_niqe` estimates
them, `NiqeParams.load` reads the file that BasicSR brings too. Source: Mittal, Soundararajan & Bovik 2013.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from varsr_engine.atomic import atomic_writer
from varsr_engine.errors import InvalidParamsError
from varsr_engine.evaluation.full_reference import gaussian_weights
from varsr_engine.evaluation.luminance import Pixels, Plane, check_pixels, whole_levels
from varsr_engine.evaluation.scene_statistics import BLOCK, NUM_FEATURES, SIGMA, WINDOW, block_features

SHARPNESS = 0.75  # of a pristine photograph's sharpest block: those below tell nothing of its quality

_MEAN, _COVARIANCE, _WINDOW = "mu_pris_param", "cov_pris_param", "gaussian_window"


class TooFewBlocks(ValueError):
    """A picture with fewer than two blocks that have all features: nothing to estimate a covariance from."""


@dataclass(frozen=True, slots=True, eq=False)
class NiqeParams:
    """The Gaussian of pristine photographs, and the window that normalises. All float64.

    mean: (36,). covariance: (36, 36). window: (7, 7), separable, sum 1.
    """

    mean: Plane
    covariance: Plane
    window: Plane

    def __post_init__(self) -> None:
        shapes = {"mean": (NUM_FEATURES,), "covariance": (NUM_FEATURES,) * 2, "window": (WINDOW,) * 2}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value.shape != shape or not np.isfinite(value).all():
                raise InvalidParamsError(f"NIQE parameters: {name} must be {shape}, finite, got {value.shape}")
        down, across = self.window_weights
        if abs(self.window.sum() - 1) > 1e-6 or np.abs(np.outer(down, across) - self.window).max() > 1e-6:
            raise InvalidParamsError("NIQE parameters: window must be separable with sum 1, as a Gaussian's")

    @property
    def window_weights(self) -> tuple[Plane, Plane]:
        """The window's weights along rows and columns: (7,) each."""
        return self.window.sum(axis=1), self.window.sum(axis=0)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NiqeParams:
        """Read an .npz file with mu_pris_param, cov_pris_param and gaussian_window. Raises InvalidParamsError."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays: dict[str, Any] = {name: file[name].astype(np.float64) for name in file.files}
                mean, covariance, window = (arrays[name] for name in (_MEAN, _COVARIANCE, _WINDOW))
        except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
            raise InvalidParamsError(
                f"NIQE parameters: {os.fspath(path)!r} must be an .npz file with {_MEAN}, {_COVARIANCE} and {_WINDOW}, "
                f"as 'python -m varsr_engine.evaluation.fit_niqe' writes it: {error}"
            ) from error
        return cls(np.ravel(mean), covariance, window)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what `load` reads. Raises OutputError."""
        arrays: dict[str, Any] = {_MEAN: self.mean[None], _COVARIANCE: self.covariance, _WINDOW: self.window}
        with atomic_writer(path) as file:
            np.savez(file, **arrays)


def niqe(picture: Pixels, params: NiqeParams) -> float:
    """√((μ - μ')ᵀ ((Σ + Σ')/2)⁺ (μ - μ')) of a picture (H, W, 3) uint8, on luminance rounded to whole levels.

    Raises TooFewBlocks: two blocks of 96×96 pixels, not flat, are the least.
    """
    check_pixels("NIQE", "picture", picture)
    blocks = (picture.shape[0] // BLOCK) * (picture.shape[1] // BLOCK)
    if blocks < 2:
        size = f"{picture.shape[1]}×{picture.shape[0]}"
        raise TooFewBlocks(f"NIQE needs two blocks of {BLOCK}×{BLOCK} pixels, a picture of {size} has {blocks}")
    down, across = params.window_weights
    features, _ = block_features(whole_levels(picture), across, down)
    whole = features[np.isfinite(features).all(axis=1)]
    if len(whole) < 2:
        raise TooFewBlocks(f"NIQE needs two blocks that are not flat, of {blocks} there are {len(whole)}")
    # As the authors' release: a flat block keeps those features that it has in the mean, and is no part of Σ.
    difference = params.mean - np.nanmean(features, axis=0)
    inverse = np.linalg.pinv((params.covariance + np.cov(whole, rowvar=False)) / 2)
    return float(np.sqrt(difference @ inverse @ difference))


def fit_niqe(photographs: Iterable[Pixels], sharpness: float = SHARPNESS) -> tuple[NiqeParams, int]:
    """Parameters from pristine photographs, (H, W, 3) uint8 each, and how many blocks they come from.

    Of each photograph the blocks count whose sharpness is at least that share of its sharpest block's. Raises
    InvalidParamsError where they are too few for a covariance of full rank: 37, and several hundred for a good one.
    """
    if not 0 <= sharpness <= 1:
        raise InvalidParamsError(f"fit_niqe: sharpness must be a share in [0, 1], got {sharpness}")
    chosen = [np.empty((0, NUM_FEATURES))]
    for photograph in photographs:
        if min(photograph.shape[:2]) >= BLOCK:
            features, deviation = block_features(whole_levels(photograph))
            sharp = deviation >= sharpness * deviation.max()
            chosen.append(features[sharp & np.isfinite(features).all(axis=1)])
    features = np.concatenate(chosen)
    if len(features) <= NUM_FEATURES:
        raise InvalidParamsError(
            f"fit_niqe: the photographs have {len(features)} sharp blocks of {BLOCK}×{BLOCK} pixels; "
            f"more than {NUM_FEATURES} are needed, several hundred are good: give more or larger photographs"
        )
    weights = gaussian_weights(WINDOW, SIGMA)
    covariance: Plane = np.cov(features, rowvar=False).astype(np.float64)
    window: Plane = weights[:, None] * weights
    return NiqeParams(features.mean(axis=0), covariance, window), len(features)
