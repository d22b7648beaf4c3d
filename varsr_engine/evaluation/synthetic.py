"""Pairs for those who have none: seeded crops, made small as cameras, software and compression make pictures poor."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch

from varsr_engine.errors import InvalidParamsError
from varsr_engine.evaluation.luminance import Pixels
from varsr_engine.imaging import Picture, create_folders, write_picture
from varsr_engine.imaging.files import ImageJob
from varsr_engine.imaging.samples import to_uint8, to_unit
from varsr_engine.training.dataset import FolderImages
from varsr_engine.training.degradation import degrade
from varsr_engine.training.degradation_params import Preset
from varsr_engine.training.synthetic import dead_leaves
from varsr_engine.training.textures import generator

SCALE = 4
DEGRADATIONS: tuple[str, ...] = get_args(Preset)

_STREAM = 7_000_000  # keeps these pictures apart from those that training draws with the same seeds


def degraded(truth: Pixels, preset: Preset, *key: int) -> Pixels:
    """(H, W, 3) → (H/4, W/4, 3), uint8: blur, noise and JPEG of a preset of `DegradationParams`, drawn by `key`."""
    high = torch.from_numpy(to_unit(truth, "truth")).permute(2, 0, 1)
    low = degrade(high, generator(_STREAM, *key), preset, SCALE)
    return to_uint8(low.permute(1, 2, 0).numpy())


def make_pairs(
    folder: Path,
    count: int,
    *,
    photographs: Path | None = None,
    side: int = 256,
    preset: Preset = "second_order",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write `count` pairs as folder/lq/0001.png and folder/gt/0001.png: a function of the arguments alone.

    photographs: a folder whose images are cropped; None: dead leaves pictures, which are synthetic and free. side: of
    the truth in pixels. preset: of `DegradationParams`. Raises InvalidParamsError (side, preset, photographs),
    OutputError (a file exists and not `overwrite`, no permission, no space).
    """
    if side < 64 or side % SCALE:
        raise InvalidParamsError(f"pairs: side must be a multiple of {SCALE} from 64 on, got {side}")
    if preset not in DEGRADATIONS:
        raise InvalidParamsError(f"pairs: degradation must be one of {', '.join(DEGRADATIONS)}, got {preset!r}")
    crops = None if photographs is None else FolderImages(photographs)
    digits = max(4, len(str(count)))
    for i in range(count):
        truth = dead_leaves(side, _STREAM + 1_000 * seed + i) if crops is None else crops.crop(i, side, _STREAM + seed)
        for role, pixels in (("gt", truth), ("lq", degraded(truth, preset, seed, i))):
            path = folder / role / f"{i + 1:0{digits}d}.png"
            create_folders([ImageJob(path, path)])
            write_picture(path, Picture(to_unit(pixels, role)), overwrite=overwrite)
