"""Images a second in batches against one by one, and what the queue adds to a request: varsr-mini on the CPU.

    python -m benchmarks.throughput

Both sides take turns within each round, so that a busy machine slows both; what counts is the ratio within a round.
`generate` is the network on prepared tensors; `queue` a backlog of pictures through Engine.submit; `overhead` one
request at a time: the share of its time between submit and result in which neither the runner nor its job was busy.
Writes benchmarks/results/throughput/<date>-<commit>.json; progress goes to stderr, the last line of stdout is one JSON
object. `--profile` prints where batches of one and of many spend their time instead.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

import numpy as np
import torch

from benchmarks.machine import ROOT, describe, median_and_range
from varsr_engine import Engine
from varsr_engine.training.synthetic import dead_leaves

FOLDER = ROOT / "benchmarks" / "results" / "throughput"
BACKLOG = 2  # batches of pictures that wait at once
REQUESTS = 5  # a round, one at a time


def pictures(count: int, side: int) -> list[np.ndarray]:
    return [dead_leaves(side, 9_100_000 + n) for n in range(count)]


def network(engine: Engine, lr: torch.Tensor, batch: int) -> tuple[float, dict[str, float]]:
    """Seconds an image of all of lr in batches, in all and by stage."""
    stages: dict[str, float] = {}
    start = time.perf_counter()
    for part in lr.split(batch):
        for stage, seconds in engine.generate(part).seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds / len(lr)
    return (time.perf_counter() - start) / len(lr), stages


def queue(engine: Engine, images: list[np.ndarray]) -> float:
    """Seconds an image of a backlog."""
    start = time.perf_counter()
    for handle in [engine.submit(image) for image in images]:
        handle.result()
    return (time.perf_counter() - start) / len(images)


def overhead(engine: Engine, image: np.ndarray) -> float:
    """The share of a lone request's time that is not the device's or its job's."""
    before, start = engine.stats().busy_seconds, time.perf_counter()
    engine.submit(image).result()
    wall = time.perf_counter() - start
    return 1 - (engine.stats().busy_seconds - before) / wall


def run(batch: int, rounds: int) -> dict[str, Any]:
    one, many = (Engine.from_pretrained("varsr-mini", device="cpu", batch_size=size) for size in (1, batch))
    side = one.model_config.image_side
    images = pictures(BACKLOG * batch, side // 4)
    lr = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    names = ("generate_1", f"generate_{batch}", "queue_1", f"queue_{batch}")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    stages: dict[str, list[dict[str, float]]] = {name: [] for name in names[:2]}
    shares: list[float] = []
    for n in range(-1, rounds):  # the first is the warm-up
        first, both = network(one, lr, 1), network(many, lr, batch)
        times = first[0], both[0], queue(one, images), queue(many, images)
        round_shares = [overhead(one, images[0]) for _ in range(REQUESTS)]
        if n < 0:
            continue
        for name, value in zip(names, times, strict=True):
            seconds[name].append(value)
        for name, parts in zip(names[:2], (first[1], both[1]), strict=True):
            stages[name].append(parts)
        shares += round_shares
        print(
            f"round {n + 1} of {rounds}: generate {times[0] / times[1]:.2f}, queue {times[2] / times[3]:.2f}, "
            f"overhead {np.median(round_shares):.2%}, load {os.getloadavg()[0]:.1f}",
            file=sys.stderr,
            flush=True,
        )
    sizes = many.stats().batch_sizes
    one.close(60)
    many.close(60)

    def ratio(what: str) -> dict[str, float]:
        alone, together = seconds[f"{what}_1"], seconds[f"{what}_{batch}"]
        return median_and_range([a / b for a, b in zip(alone, together, strict=True)])

    def by_stage(name: str) -> dict[str, float]:
        return {stage: float(np.median([p[stage] for p in stages[name]])) for stage in stages[name][0]}

    return {
        "batch": batch,
        "rounds": rounds,
        "seconds_an_image": {name: median_and_range(values) for name, values in seconds.items()},
        "images_a_second": {name: 1 / float(np.median(values)) for name, values in seconds.items()},
        "generate_ratio": ratio("generate"),
        "queue_ratio": ratio("queue"),
        "queue_batch_sizes": sizes,
        "stage_seconds_an_image": {name: by_stage(name) for name in names[:2]},
        "overhead_share": median_and_range(shares),
        "load_average": round(os.getloadavg()[0], 2),
    }


def profile(batch: int) -> None:
    engine = Engine.from_pretrained("varsr-mini", device="cpu")
    side = engine.model_config.image_side
    for size in (1, batch):
        lr = torch.zeros(size, 3, side, side)
        engine.generate(lr)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
            engine.generate(lr)
        print(f"batch {size}")
        print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-file", action="store_true", help="write no results")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    if arguments.profile:
        return profile(arguments.batch)
    machine = describe(torch.device("cpu"), torch.float32)
    result = {
        "benchmark": "throughput",
        "machine": machine,
        "date": machine["date"],
        "model": "varsr-mini",
        **run(arguments.batch, arguments.rounds),
    }
    if not arguments.no_file:
        FOLDER.mkdir(parents=True, exist_ok=True)
        path = FOLDER / f"{result['date']}-{machine['commit'].removesuffix('+')}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
