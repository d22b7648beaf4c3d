"""Whether tiles show where they meet: the seam score of smooth pictures and photographs, for each way to blend them.

    python -m benchmarks.seams --docs

Tiles run once a picture and are blended with each window; the decoded image is scored as `UpscaleResult.seam_score`,
where tiles meet and, to know what the score is worth, along lines where none do. varsr-mini on the CPU, the network's
own result (no colour fix, fidelity 0). Writes benchmarks/results/seams/<date>-<commit>.json, and with --docs the table
of docs/tiling.md. Progress goes to stderr, the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from benchmarks.machine import ROOT, commit, processor
from benchmarks.tables import replaced
from varsr_engine import Engine, UpscaleParams
from varsr_engine.engine import pictures
from varsr_engine.engine.tiling import TileGrid, gaussian_window, ramp_window, seam_score
from varsr_engine.imaging import resize_rgb

FOLDER = ROOT / "benchmarks" / "results" / "seams"
SIDE = 104  # pixels of a source: five tiles of varsr-mini a side, at 4 times
ELSEWHERE = (-10, -7, 7, 10)  # cells from where tiles meet
DEFAULT = "ramp (default)"
WINDOWS: dict[str, Callable[[TileGrid], torch.Tensor]] = {
    DEFAULT: lambda grid: ramp_window(grid.side, grid.overlap),
    "Gaussian (published)": lambda grid: gaussian_window(grid.side),
    "none": lambda grid: torch.ones(grid.side, grid.side),
}


def sources() -> dict[str, np.ndarray]:
    """(SIDE, SIDE, 3) uint8 each."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    blobs = np.random.default_rng(0).integers(40, 215, (7, 7, 3), dtype=np.uint8)
    with Image.open(ROOT / "examples" / "photo.jpg") as image:
        photo = image.convert("RGB")
        corner = photo.crop((128 - SIDE, 128 - SIDE, 128, 128)).transpose(Image.Transpose.ROTATE_90)
    return {
        "gradient": np.stack([255 * x, 255 * y, 127 * (x + y)], axis=-1).astype(np.uint8),
        "waves": np.stack(
            [128 + 90 * np.sin(5 * x), 128 + 90 * np.cos(4 * y), 128 + 60 * np.sin(3 * (x + y))], -1
        ).astype(np.uint8),
        "soft blobs": np.asarray(Image.fromarray(blobs).resize((SIDE, SIDE), Image.Resampling.BICUBIC)),
        "photograph": np.asarray(photo.crop((0, 0, SIDE, SIDE))),
        "photograph, turned": np.asarray(corner),
    }


def score_of(engine: Engine, source: np.ndarray) -> dict[str, Any]:
    """Scores by window: {"seams": where tiles meet, "elsewhere": along each other line}."""
    params = UpscaleParams(color_fix="none", fidelity=0.0)
    picture = engine.read(source, params)
    grid = engine.grid_of(picture, params)
    assert grid is not None
    reference = torch.from_numpy(resize_rgb(picture.rgb, grid.image_size)).permute(2, 0, 1)
    run, latents = engine._pipeline.sample, list[Any]()
    scores: dict[str, Any] = {}

    def recorded(*arguments: Any, **settings: Any) -> Any:
        latents.append(run(*arguments, **settings))
        return latents[-1]

    for name, window in WINDOWS.items():
        again = iter(list(latents))
        sample = replaying(again) if latents else recorded
        with (
            patch.object(engine._pipeline, "sample", sample),
            patch.object(pictures, "blend_window", lambda grid, params, window=window: window(grid)),
        ):
            image = engine.upscale(source, params).tensor

        def shifted(cells: int, image: torch.Tensor = image) -> float:
            tops, lefts = (tuple(o + cells for o in offsets) for offsets in (grid.tops, grid.lefts))
            return seam_score(image, reference, replace(grid, tops=tops, lefts=lefts))

        scores[name] = {"seams": shifted(0), "elsewhere": [shifted(cells) for cells in ELSEWHERE]}
    return scores


def replaying(samples: Iterator[Any]) -> Callable[..., Any]:
    """In place of a pipeline's `sample`: what it gave before."""
    return lambda *arguments, **settings: next(samples)


def table(result: dict[str, Any]) -> str:
    columns = [*WINDOWS, "where no tiles meet, default"]
    lines = [f"| picture | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for name, scores in result["pictures"].items():
        elsewhere = scores[DEFAULT]["elsewhere"]
        cells = [f"{scores[window]['seams']:.2f}" for window in WINDOWS]
        lines.append(f"| {name} | {' | '.join(cells)} | {min(elsewhere):.2f} to {max(elsewhere):.2f} |")
    machine = result["machine"]
    facts = f"varsr-mini, commit {machine['commit']}, {result['date']}, {machine['processor']}."
    return facts + "\n\n" + "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", action="store_true", help="also rewrite the table of docs/tiling.md")
    arguments = parser.parse_args()
    started_at = commit()
    engine = Engine.from_pretrained("varsr-mini", device="cpu")
    scores = {}
    for name, source in sources().items():
        scores[name] = score_of(engine, source)
        print(
            name,
            {window: round(value["seams"], 3) for window, value in scores[name].items()},
            file=sys.stderr,
            flush=True,
        )
    result = {
        "benchmark": "seams",
        "machine": {"processor": processor(), "python": platform.python_version(), "commit": started_at},
        "date": time.strftime("%Y-%m-%d"),
        "pictures": scores,
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{result['date']}-{started_at.removesuffix('+')}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.docs:
        page: Path = ROOT / "docs" / "tiling.md"
        page.write_text(replaced(page.read_text(), "seams", table(result)))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
