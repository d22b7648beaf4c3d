"""PSNR-Y and SSIM-Y of contestants with real weights, on pairs of a low-resolution picture and the truth.

Every picture goes the way of the host clock, colour fix included, as 8 bits. Pictures with random weights are nothing
to measure: such contestants are left out, and named.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.diffusion.clocks import host_call
from benchmarks.diffusion.contestants import Contestant, PeerContestant, engine_contestant
from benchmarks.diffusion.peers import PEERS
from benchmarks.diffusion.settings import Settings
from benchmarks.diffusion.sizes import SCALE
from varsr_engine.evaluation.full_reference import psnr_y, ssim_y
from varsr_engine.evaluation.pairs import find_pairs
from varsr_engine.evaluation.pixels import Pixels, read_pixels

METRICS: dict[str, Callable[[Pixels, Pixels], float]] = {"psnr_y": psnr_y, "ssim_y": ssim_y}


def with_weights(settings: Settings) -> list[Contestant]:
    """Bicubic, the peers whose weights were given, and the engine where its model was."""
    given = [name for name in PEERS if settings.folder_of(name) is not None]
    found = [PeerContestant(PEERS[name], settings).at(0) for name in ("bicubic", *given)]
    if settings.model is not None:
        found.append(engine_contestant(settings, "auto", settings.dtype, 1))
    return found


def measure(settings: Settings, folder: Path) -> dict[str, Any]:
    """Means over the pairs by contestant, and what was left out, in sentences.

    Raises InvalidParamsError for a folder without pairs; see `varsr_engine.evaluation.pairs`.
    """
    found, side = find_pairs(folder), settings.sizes.low_side
    left_out, scores = list(found.warnings), dict[str, dict[str, list[float]]]()
    contestants = with_weights(settings)
    for pair in found.pairs:
        low, truth = read_pixels(pair.low), None if pair.truth is None else read_pixels(pair.truth)
        if truth is None or low.shape != (side, side, 3) or truth.shape != (SCALE * side, SCALE * side, 3):
            left_out.append(f"{pair.name}: expected {side} x {side} pixels and a truth {SCALE} times as large")
            continue
        for contestant in contestants:
            picture = upscaled(contestant, low, settings)
            mine = scores.setdefault(contestant.name, {name: [] for name in METRICS})
            for name, metric in METRICS.items():
                mine[name].append(metric(picture, truth))
    means = {who: {name: statistics.mean(values) for name, values in mine.items()} for who, mine in scores.items()}
    count = max((len(mine["psnr_y"]) for mine in scores.values()), default=0)
    return {"pairs": count, "means": means, "left_out": left_out}


def upscaled(contestant: Contestant, low: Pixels, settings: Settings) -> Pixels:
    """(S, S, 3) uint8 of (S/4, S/4, 3) uint8."""
    given: Tensor = torch.from_numpy(low).permute(2, 0, 1)[None]
    with torch.no_grad():
        out = host_call(contestant, given, settings.torch_device, settings.seed)
    return out[0].permute(1, 2, 0).numpy()
