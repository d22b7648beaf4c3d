"""Photographs degraded with fixed seeds, upscaled ×4 by anything that maps pixels to pixels, and measured.

A model in memory, while it trains:

    engine = Engine.from_model(model)
    rows = evaluate(classical_upscalers() | {"ours": engine_upscaler(engine)}, bundled_photographs())
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from benchmarks.quality.metrics import METRICS, Pixels
from benchmarks.quality.photographs import Photograph
from varsr_engine.training.degradation import Preset, degrade

if TYPE_CHECKING:
    from varsr_engine.engine.engine import Engine

SCALE = 4
Upscaler = Callable[[Pixels], Pixels]  # (h, w, 3) uint8 → (4h, 4w, 3) uint8

DEGRADATIONS: dict[str, Preset] = {"mild": "mild_fixed", "hard": "hard_fixed", "second_order": "second_order"}


@dataclass(frozen=True, slots=True)
class Case:
    """One photograph, degraded one way, and what the upscalers made of it."""

    photo: str
    degradation: str
    truth: Pixels
    low: Pixels
    outputs: dict[str, Pixels]


@dataclass(frozen=True, slots=True)
class Row:
    """Scores (by the names of METRICS) of one upscaler on one case, or their means: photo is then "mean"."""

    photo: str
    degradation: str
    upscaler: str
    scores: dict[str, float]
    seconds: float


def degraded(photo: Photograph, degradation: str, seed: int = 0) -> Pixels:
    """The low-resolution picture: a function of the photograph's name and pixels, the degradation and the seed."""
    if degradation not in DEGRADATIONS:
        raise ValueError(f"evaluate: degradation must be one of {', '.join(DEGRADATIONS)}, got {degradation!r}")
    rng = np.random.default_rng([seed, zlib.crc32(photo.name.encode()), zlib.crc32(degradation.encode())])
    truth = torch.from_numpy(photo.pixels).permute(2, 0, 1).float() / 255
    low = degrade(truth, rng, DEGRADATIONS[degradation], SCALE)
    return (low * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def evaluate(
    upscalers: Mapping[str, Upscaler],
    photographs: Sequence[Photograph],
    degradations: Sequence[str] = tuple(DEGRADATIONS),
    *,
    seed: int = 0,
    on_case: Callable[[Case], None] | None = None,
) -> list[Row]:
    """One row a photograph, degradation and upscaler. on_case is called with the pictures of each case as it ends."""
    rows = []
    for degradation in degradations:
        for photo in photographs:
            low = degraded(photo, degradation, seed)
            outputs: dict[str, Pixels] = {}
            for name, upscale in upscalers.items():
                start = time.perf_counter()
                outputs[name] = upscale(low)
                seconds = time.perf_counter() - start
                scores = {metric: score(outputs[name], photo.pixels) for metric, score in METRICS.items()}
                rows.append(Row(photo.name, degradation, name, scores, seconds))
            if on_case is not None:
                on_case(Case(photo.name, degradation, photo.pixels, low, outputs))
    return rows


def means(rows: Sequence[Row]) -> list[Row]:
    """The mean of each upscaler on each degradation, over photographs, in the order of the rows."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.degradation, row.upscaler), []).append(row)
    return [
        Row(
            "mean",
            degradation,
            upscaler,
            {metric: fmean(r.scores[metric] for r in group) for metric in group[0].scores},
            fmean(r.seconds for r in group),
        )
        for (degradation, upscaler), group in groups.items()
    ]


def pillow_upscaler(resample: Image.Resampling) -> Upscaler:
    def upscale(low: Pixels) -> Pixels:
        size = (low.shape[1] * SCALE, low.shape[0] * SCALE)
        return np.array(Image.fromarray(low).resize(size, resample))

    return upscale


def classical_upscalers() -> dict[str, Upscaler]:
    """Bicubic and Lanczos, as Pillow computes them."""
    return {
        "bicubic": pillow_upscaler(Image.Resampling.BICUBIC),
        "lanczos": pillow_upscaler(Image.Resampling.LANCZOS),
    }


def engine_upscaler(engine: Engine, **params: Any) -> Upscaler:
    """An engine as an upscaler; params are fields of UpscaleParams (cfg, refiner, seed, color_fix, …)."""
    return lambda low: engine.upscale(low, scale=SCALE, **params).array
