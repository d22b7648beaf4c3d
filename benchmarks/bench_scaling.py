"""Batches and tiles: the engine against the published way as the work grows, interleaved in one process.

    python -m benchmarks.bench_scaling                          # varsr-mini
    python -m benchmarks.bench_scaling --batches 1 8 --out FILE

`batches` is the network on prepared tensors. `tiles` is an image of several tiles: the engine from picture to picture
(cutting, blending, decoding, colour correction), the published way only its network, tile by tile, on the same grid.
The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_suite.engine_times import wall
from benchmarks.machine import describe, median_and_range
from benchmarks.models import NAMES, open_model
from benchmarks.published_style import PublishedStyle
from varsr_engine.engine.engine import Engine
from varsr_engine.training.synthetic import dead_leaves

CPU = torch.device("cpu")
ENLARGED = 2  # times a tile's side, so that the grid has several rows and columns


def compare(mine: Callable[[], Any], theirs: Callable[[], Any], images: int, repeat: int, what: str) -> dict[str, Any]:
    """Seconds of an image and the ratio, each round a run of both; the first round warms up."""
    pairs = []
    for turn in range(repeat + 1):
        pair = wall(mine, CPU), wall(theirs, CPU)
        print(f"{what}, round {turn} of {repeat}: {pair[0]:.2f} s, {pair[1]:.2f} s", file=sys.stderr, flush=True)
        pairs.append(pair)
    return {
        "engine_s": median_and_range([a / images for a, _ in pairs[1:]]),
        "published_s": median_and_range([b / images for _, b in pairs[1:]]),
        "ratio": median_and_range([b / a for a, b in pairs[1:]]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="varsr-mini", help=NAMES)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the JSON object to this file")
    arguments = parser.parse_args()
    checkpoint, name = open_model(arguments.model, CPU)
    config, read = checkpoint.config, checkpoint.open()
    engine = Engine(checkpoint)
    published = PublishedStyle({key: read(key).float() for key in checkpoint.shapes}, config)
    machine = describe(engine.device, engine.dtype)

    def published_way(lr: torch.Tensor) -> torch.Tensor:
        return published.generate(lr, [0] * len(lr), config.guidance_scale, seed=1, top_k=1).image

    side, rows = config.image_side, []
    for batch in arguments.batches:
        lr = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
        run = partial(engine.generate, lr, seed=1, top_k=1, refiner_temperature=1.0)
        rows.append(
            {"batch": batch, **compare(run, partial(published_way, lr), batch, arguments.repeat, f"batch {batch}")}
        )
    picture = dead_leaves(ENLARGED * side // 4, 9_200_000)
    tiles = engine.plan((picture.shape[1], picture.shape[0]), scale=4).tiles
    lr = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tiled = compare(
        lambda: engine.upscale(picture, scale=4, seed=1),
        lambda: [published_way(lr) for _ in range(tiles)],
        1,
        arguments.repeat,
        f"{tiles} tiles",
    )
    result = {
        "benchmark": "scaling",
        "model": name,
        "machine": machine,
        "repeat": arguments.repeat,
        "batches": rows,
        "tiled": {"side": 4 * picture.shape[0], "tiles": tiles, **tiled},
    }
    engine.close(60)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
