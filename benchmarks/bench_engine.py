"""The engine against the same network run the published way: one process, same weights, interleaved.

    python -m benchmarks.bench_engine                            # the tiny golden network, seconds
    python -m benchmarks.bench_engine --model d24 --repeat 3     # minutes

Both are checked against each other before anything is timed. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe, median_and_range
from benchmarks.models import NAMES, open_model
from benchmarks.published_style import PublishedStyle
from tests.golden_cases import unit
from varsr_engine.checkpoint import Checkpoint
from varsr_engine.config import ModelConfig
from varsr_engine.engine.cost import stage_costs
from varsr_engine.engine.engine import Engine

Run = Callable[[], dict[str, float]]  # one image; seconds by stage


class Subject:
    """Both implementations on the same weights, input and noise, one image."""

    def __init__(self, checkpoint: Checkpoint, which: str = "both") -> None:
        config = checkpoint.config
        side, rows = config.image_side, config.latent_side**2
        self.config = config
        self.lr = torch.from_numpy(unit(0, "input.lr", (1, 3, side, side))).clamp_(-1, 1)
        shape = (config.refiner_steps + 1, 1, rows, config.latent_channels)
        self.noise = torch.from_numpy(unit(0, "noise", shape))
        if which != "published":
            self.engine = Engine(checkpoint)
        if which != "engine":
            get = checkpoint.open()
            self.published = PublishedStyle({name: get(name).float() for name in checkpoint.shapes}, config)

    def run_engine(self) -> dict[str, float]:
        out = self.engine.generate(self.lr, noise=self.noise, top_k=1, refiner_temperature=1.0)
        self.engine_image, self.engine_tokens = out.images, out.tokens
        return out.seconds

    def run_published(self) -> dict[str, float]:
        seconds: dict[str, float] = {}
        last = time.perf_counter()

        def stage(name: str) -> None:
            nonlocal last
            now = time.perf_counter()
            seconds[name], last = now - last, now

        out = self.published.generate(self.lr, [0], self.config.guidance_scale, noise=self.noise, top_k=1, timer=stage)
        self.published_image, self.published_tokens = out.image, out.tokens[-1]
        return seconds

    def agreement(self) -> dict[str, float]:
        """Of the runs made last: share of equal tokens of the last scale, relative error of the image."""
        mine, theirs = self.engine_image.double(), self.published_image.double()
        equal = (self.engine_tokens == self.published_tokens).double().mean().item()
        return {"tokens_equal": equal, "image_relative_error": ((mine - theirs).norm() / theirs.norm()).item()}


def peak_memory(model: str, which: str) -> int:
    """Peak resident bytes of a fresh process that loads the model and makes two images one way."""
    command = [sys.executable, "-m", "benchmarks.bench_engine", "--model", model, "--only", which]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(out.split()[-1])


def run_alone(model: str, which: str) -> None:
    checkpoint, _ = open_model(model, torch.device("cpu"))
    subject = Subject(checkpoint, which)
    run: Run = subject.run_engine if which == "engine" else subject.run_published
    for _ in range(2):
        run()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def measure(
    subject: Subject, repeat: int, warm_up: int, most_seconds: float, console: Console
) -> tuple[list[dict[str, float]], ...]:
    """Seconds by stage of `repeat` interleaved runs of the engine and of the baseline; fewer where time is up."""
    mine: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    start = time.monotonic()
    for i in range(warm_up + repeat):
        a, b = subject.run_engine(), subject.run_published()
        console.print(f"run {i}: engine {sum(a.values()):.3f} s, published style {sum(b.values()):.3f} s")
        if i >= warm_up:
            mine.append(a)
            theirs.append(b)
            if time.monotonic() - start > most_seconds:
                break
    return mine, theirs


def summarise(
    config: ModelConfig, mine: list[dict[str, float]], theirs: list[dict[str, float]], ceiling: float
) -> dict[str, Any]:
    """Medians with ranges by stage and in all, FLOP/s against the ceiling, and the ratio of paired runs."""
    costs = stage_costs(config)
    stages = {
        stage: {
            "engine_ms": median_and_range([1e3 * run[stage] for run in mine]),
            "published_ms": median_and_range([1e3 * run[stage] for run in theirs]),
            "gflop": cost.flops / 1e9,
        }
        for stage, cost in costs.items()
    }
    totals = [sum(run.values()) for run in mine], [sum(run.values()) for run in theirs]
    flops = sum(cost.flops for cost in costs.values())
    engine = median_and_range(totals[0])
    return {
        "stages": stages,
        "engine_s": engine,
        "published_s": median_and_range(totals[1]),
        "ratio": median_and_range([b / a for a, b in zip(*totals, strict=True)]),
        "gflop": flops / 1e9,
        "share_of_gemm_ceiling": flops / engine["median"] / 1e9 / ceiling,
    }


def show(result: dict[str, Any], console: Console) -> None:
    table = Table("stage", "engine ms", "published ms", "ratio", "GFLOP", "GFLOP/s")
    for stage, row in result["stages"].items():
        mine, theirs = row["engine_ms"]["median"], row["published_ms"]["median"]
        rate = row["gflop"] / mine * 1e3
        table.add_row(
            stage, f"{mine:.1f}", f"{theirs:.1f}", f"{theirs / mine:.2f}", f"{row['gflop']:.1f}", f"{rate:.1f}"
        )
    console.print(table)
    ratio, share = result["ratio"], result["share_of_gemm_ceiling"]
    console.print(
        f"total: engine {result['engine_s']['median']:.3f} s, published style {result['published_s']['median']:.3f} s, "
        f"ratio {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f}); "
        f"{share:.0%} of torch's own large product, {result['machine']['gemm_ceiling_gflops']} GFLOP/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help=NAMES)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--most-seconds", type=float, default=float("inf"), help="no further round after that")
    parser.add_argument(
        "--memory",
        nargs="+",
        choices=("engine", "published"),
        help="also measure peak memory, of each one named in a process of its own",
    )
    parser.add_argument("--out", help="write the JSON object to this file")
    parser.add_argument("--only", choices=("engine", "published"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        return run_alone(args.model, args.only)
    console = Console(stderr=True)
    checkpoint, name = open_model(args.model, torch.device("cpu"))
    memory = {which: peak_memory(args.model, which) for which in args.memory} if args.memory else None
    subject = Subject(checkpoint)
    machine = describe(subject.engine.device, subject.engine.dtype)
    mine, theirs = measure(subject, args.repeat, args.warm_up, args.most_seconds, console)
    agreement = subject.agreement()
    if agreement["tokens_equal"] < 1 or agreement["image_relative_error"] > 1e-3:
        console.print(f"[red]FAIL[/red]: the two do not agree, no times are reported: {agreement}")
        raise SystemExit(1)
    result = {
        "benchmark": "engine",
        "model": name,
        "machine": machine,
        "repeat": len(mine),
        **agreement,
        **summarise(subject.config, mine, theirs, machine["gemm_ceiling_gflops"]),
        "peak_bytes": memory,
    }
    show(result, console)
    text = json.dumps(result)
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
