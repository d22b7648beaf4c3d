"""What presets, and each setting by itself, gain in time and cost in quality: varsr-mini on one-tile pictures.

    python -m benchmarks.preset_cost            # about three minutes; rewrites the tables of docs/presets.md

The pictures are examples/photo.jpg and synthetic ones that nothing was trained on, degraded as the quality evaluation's
`mild`. Settings take turns within each round, so that a busy machine slows all of them; a time counts only as its ratio
to `quality` in the same round. Writes benchmarks/results/presets/<date>-<commit>.json; progress goes to stderr, the
last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from benchmarks.machine import ROOT, commit, median_and_range, processor
from benchmarks.quality.evaluation import degraded
from benchmarks.quality.metrics import METRICS, Pixels
from benchmarks.quality.photographs import Photograph
from benchmarks.tables import replaced
from varsr_engine import Engine
from varsr_engine.config import ModelConfig
from varsr_engine.engine.memory import RESERVE, MemoryPlan, memory_plan
from varsr_engine.engine.presets import PRESETS
from varsr_engine.model.varsr import VARSR
from varsr_engine.training.synthetic import dead_leaves

FOLDER = ROOT / "benchmarks" / "results" / "presets"
PAGE = ROOT / "docs" / "presets.md"
DEGRADATION = "mild"
SYNTHETIC = (9_000_001, 9_000_002, 9_000_003)  # far from the numbers that training draws
BASELINE = "quality"
OFFLOADED = "parts loaded for each use"


class Subject(NamedTuple):
    """A picture of one tile: what the engine is given, and what it was made from."""

    name: str
    low: Pixels
    truth: Pixels


def subjects(side: int) -> list[Subject]:
    with Image.open(ROOT / "examples" / "photo.jpg") as image:
        photos = [Photograph("photo.jpg", np.array(image.convert("RGB"))[:side, :side])]
    photos += [Photograph(f"synthetic {seed}", dead_leaves(side, seed)) for seed in SYNTHETIC]
    return [Subject(photo.name, degraded(photo, DEGRADATION), photo.pixels) for photo in photos]


def settings(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """What is compared, by its name in the table: fields of UpscaleParams."""
    K, cfg = config.num_scales, config.guidance_scale
    named: dict[str, dict[str, Any]] = {name: {"preset": name} for name in PRESETS}
    named |= {f"steps={n}": {"steps": n} for n in (5, 4, 3, 1)}
    named |= {f"guided_scales={n}": {"guided_scales": n} for n in (K - 1, K - 2, 0)}
    return named | {f"cfg={value:g}": {"cfg": value} for value in (cfg / 2, 0.0)}


def tight_budget(engine: Engine) -> int:
    """The least memory_budget that one tile keeps to."""
    plan = memory_plan(engine.model_config, engine._shapes, 1, engine.dtype, None, True)
    return plan.peak + RESERVE


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return 10 * math.log10(1 / error) if error > 0 else math.inf


def run(rounds: int, pictures: int | None) -> dict[str, Any]:
    engine = Engine.from_pretrained("varsr-mini", device="cpu")
    offloading = Engine.from_pretrained("varsr-mini", device="cpu", memory_budget=tight_budget(engine))
    assert offloading.offloads
    compared = settings(engine.model_config) | {OFFLOADED: {}}
    chosen = subjects(engine.model_config.image_side)[:pictures]
    names, images = list(compared), dict[str, list[np.ndarray]]()
    truths: dict[str, list[float]] = {}
    for name in names:  # also the warm-up
        used = offloading if name == OFFLOADED else engine
        results = [used.upscale(subject.low, **compared[name]) for subject in chosen]
        images[name] = [result.picture.rgb for result in results]
        pairs = zip(results, chosen, strict=True)
        truths[name] = [METRICS["psnr_y"](result.array, subject.truth) for result, subject in pairs]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for n in range(rounds):
        for name in names[n % len(names) :] + names[: n % len(names)]:
            used = offloading if name == OFFLOADED else engine
            start = time.perf_counter()
            for subject in chosen:
                used.upscale(subject.low, **compared[name])
            seconds[name].append((time.perf_counter() - start) / len(chosen))
        print(f"round {n + 1} of {rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    rows = []
    for name in names:
        ratios = [mine / exact for mine, exact in zip(seconds[name], seconds[BASELINE], strict=True)]
        distances = [psnr(a, b) for a, b in zip(images[name], images[BASELINE], strict=True)]
        exact = all(math.isinf(d) for d in distances)
        rows.append(
            {
                "name": name,
                "settings": compared[name],
                "seconds": median_and_range(seconds[name]),
                "time_ratio": median_and_range(ratios),
                "psnr_to_exact": None if exact else {"mean": float(np.mean(distances)), "min": min(distances)},
                "psnr_y_to_truth": float(np.mean(truths[name])),
            }
        )
    return {
        "rounds": rounds,
        "pictures": [subject.name for subject in chosen],
        "presets": {name: preset._asdict() for name, preset in PRESETS.items()},
        "rows": rows,
        "load_average": round(os.getloadavg()[0], 2),
    }


# --- tables ----------------------------------------------------------------------------------------------------------


def newest() -> dict[str, Any]:
    """The newest result there is."""
    results = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    result: dict[str, Any] = max(results, key=lambda r: (r["date"], r.get("time", "")))
    return result


def cost_table(result: dict[str, Any]) -> str:
    lines = [
        "| setting | time, of `quality`'s | PSNR to the exact result, mean (worst) | PSNR-Y to the truth |",
        "| --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        name = f"**{row['name']}**" if row["name"] in result["presets"] else f"`{row['name']}`"
        name = row["name"] if row["name"] == OFFLOADED else name
        time_ratio, distance = row["time_ratio"], row["psnr_to_exact"]
        ratio = "{median:.2f} ({min:.2f} to {max:.2f})".format(**time_ratio)
        to_exact = "the same" if distance is None else "{mean:.1f} dB ({min:.1f})".format(**distance)
        lines.append(f"| {name} | {ratio} | {to_exact} | {row['psnr_y_to_truth']:.2f} dB |")
    m, exact = result["machine"], result["rows"][0]["seconds"]
    said = (
        f"Commit {m['commit']}, {result['date']}, {m['processor']}, {m['threads']} threads, torch {m['torch']}, load "
        f"{result['load_average']}. Median and range of {result['rounds']} interleaved rounds of "
        f"{len(result['pictures'])} pictures of one tile; `quality` took {exact['median']:.2f} s a tile. PSNR of "
        "finished pictures, colour fix and fidelity included."
    )
    return "\n".join([said, "", *lines])


def preset_table() -> str:
    lines = ["| preset | refiner steps | scales without guidance |", "| --- | --- | --- |"]
    for name, preset in PRESETS.items():
        unguided = "none" if preset.unguided == 0 else f"the last {preset.unguided}, and the refiner"
        lines.append(f"| `{name}` | {'the model’s' if preset.steps is None else preset.steps} | {unguided} |")
    return "\n".join(lines)


def memory_table() -> str:
    """Planned bytes of one tile, with all weights and with parts that take turns."""
    published = ModelConfig.varsr_d24()
    with torch.device("meta"):
        shapes = {name: tuple(t.shape) for name, t in VARSR(published).state_dict().items()}
    mini = Engine.from_pretrained("varsr-mini", device="cpu", dtype="fp32")
    plans: dict[str, tuple[MemoryPlan, MemoryPlan]] = {}
    for name, config, of, dtype in (
        ("varsr-mini, fp32", mini.model_config, mini._shapes, torch.float32),
        ("published, fp16", published, shapes, torch.float16),
    ):
        kept, offloaded = (memory_plan(config, of, 1, dtype, None, offload) for offload in (False, True))
        plans[name] = kept, offloaded
    lines = [
        "| model, one tile | weights | peak | weights, parts taking turns | peak | smallest budget kept |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, (kept, offloaded) in plans.items():
        sizes = (kept.weights, kept.peak, offloaded.weights, offloaded.peak, offloaded.peak + RESERVE)
        lines.append(f"| {name} | {' | '.join(f'{size / 1024**2:.0f} MiB' for size in sizes)} |")
    return "\n".join(lines)


def page(document: str, result: dict[str, Any]) -> str:
    """docs/presets.md with its tables made anew."""
    document = replaced(document, "presets", preset_table())
    document = replaced(document, "preset cost", cost_table(result))
    return replaced(document, "memory", memory_table())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pictures", type=int, help="only the first of them")
    parser.add_argument("--no-file", action="store_true", help="write neither results nor tables")
    arguments = parser.parse_args()
    started_at = commit()
    measured = run(arguments.rounds, arguments.pictures)
    machine = {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    result = {
        "benchmark": "preset_cost",
        "machine": {**machine, "commit": started_at},
        "date": time.strftime("%Y-%m-%d"),
        "time": time.strftime("%H:%M:%S"),
        "model": "varsr-mini",
        "degradation": DEGRADATION,
        **measured,
    }
    if not arguments.no_file:
        FOLDER.mkdir(parents=True, exist_ok=True)
        path: Path = FOLDER / f"{result['date']}-{started_at.removesuffix('+')}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
        PAGE.write_text(page(PAGE.read_text(), result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
