"""Pictures larger than a network is made for, in overlapping tiles that are blended: the same way for every peer."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.diffusion.clocks import with_peak_bytes
from benchmarks.diffusion.contestants import Call, Contestant
from benchmarks.diffusion.methods import Pictures
from benchmarks.diffusion.settings import Settings
from benchmarks.diffusion.sizes import SCALE
from varsr_engine.engine.tiling import axis_offsets, ramp_window


def origins(side: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """First pixels (top, left) of the square tiles of a square picture, row by row."""
    offsets = axis_offsets(side, tile, overlap)
    return [(top, left) for top in offsets for left in offsets]


def by_tiles(call: Call, tile: int, overlap: int, batch: int) -> Call:
    """A call for larger square pictures: cut, `batch` tiles a call, weighted by a ramp over the overlap, summed."""

    def tiled(pictures: Pictures, seed: int) -> Tensor:
        low, resized = pictures
        B, _, side, _ = resized.shape
        window = ramp_window(tile, overlap).to(resized.device)
        total, weight = torch.zeros_like(resized), torch.zeros(side, side, device=resized.device)
        places = [(b, top, left) for b in range(B) for top, left in origins(side, tile, overlap)]
        for first in range(0, len(places), batch):
            part = places[first : first + batch]
            cut = Pictures(*(torch.stack([square(x, at, tile, side) for at in part]) for x in (low, resized)))
            for (b, top, left), out in zip(part, call(cut, seed), strict=True):
                total[b, :, top : top + tile, left : left + tile] += out * window
        for top, left in origins(side, tile, overlap):
            weight[top : top + tile, left : left + tile] += window
        return total / weight

    return tiled


def square(x: Tensor, place: tuple[int, int, int], tile: int, side: int) -> Tensor:
    """The tile at (image, top, left) in output pixels, of an input (B, 3, h, w) at its own or the output's size."""
    b, top, left = place
    per = side // x.shape[-1]
    if per not in (1, SCALE):
        raise ValueError(f"tiles: an input must be {side} or {side // SCALE} pixels a side, got {x.shape[-1]}")
    return x[b, :, top // per : (top + tile) // per, left // per : (left + tile) // per]


def tiles_of(settings: Settings) -> int:
    """How many tiles the large picture has."""
    tile = settings.sizes.side
    return len(origins(settings.tiled_side, tile, round(tile * settings.tile_overlap)))


def ways(contestant: Contestant, whole: bool, settings: Settings) -> list[tuple[str, Contestant]]:
    """How a contestant may do the large picture: by tiles, and whole where its network takes any size.

    Its arithmetic whole counts as that of the area, the least that it can be: attention grows faster.
    """
    tile, flops = settings.sizes.side, contestant.flops
    call = by_tiles(contestant.call, tile, round(tile * settings.tile_overlap), settings.tile_batch)

    def by(times: int, **changes: Any) -> Contestant:
        facts = {**contestant.facts, "tiles": times}
        return replace(contestant, flops=None if flops is None else times * flops, facts=facts, **changes)

    found = [(f"{contestant.name}, by tiles", by(tiles_of(settings), call=call))]
    return found + ([(f"{contestant.name}, whole", by(settings.tiled_times**2))] if whole else [])


def own_tiles(contestant: Contestant, low: Tensor, settings: Settings) -> tuple[np.ndarray, dict[str, Any]]:
    """The engine with its own tiles, once or twice: the picture (h, w, 3) uint8 that it is given, and its row.

    low: (1, 3, h, w) uint8 on the host.
    """
    upscale, flops = contestant.upscale, contestant.flops
    assert upscale is not None and flops is not None
    rgb = np.ascontiguousarray(low[0].permute(1, 2, 0).numpy())
    start = time.perf_counter()
    out = upscale(rgb)
    first, expected, faults = time.perf_counter() - start, (SCALE * rgb.shape[0], SCALE * rgb.shape[1], 3), list[str]()
    if out.shape != expected or out.std() == 0:
        faults.append(f"the picture must be {expected} and not constant, got {out.shape} of deviation {out.std():.2g}")
    other, above = with_peak_bytes(lambda: upscale(np.ascontiguousarray(rgb[:, ::-1])), settings.torch_device)
    if np.array_equal(out, other):
        faults.append("another input gives the same output")
    tiles = tiles_of(settings)
    row = {"faults": faults, "how": "its own tiles", "steps": 1, "flops": tiles * flops, "activation_bytes": above}
    return rgb, {**row, **contestant.facts, "tiles": tiles, "first_call_s": first}
