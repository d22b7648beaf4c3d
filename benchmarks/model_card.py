"""The tables of docs/varsr-mini.md: how the shipped model was trained, and what it is worth.

python -m benchmarks.model_card record AUTOENCODER_RUN TRANSFORMER_RUN   # after training: keep logs and machine
python -m benchmarks.model_card                                          # rewrite the tables
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import ROOT, commit, processor
from varsr_engine.checkpoint import open_checkpoint
from varsr_engine.packaged import DEFAULT_MODEL

RESULTS = ROOT / "benchmarks" / "results"
RECORD = RESULTS / "training" / f"{DEFAULT_MODEL}.json"
CARD = ROOT / "docs" / f"{DEFAULT_MODEL}.md"
CURVE_POINTS = 14
CURVES = {
    "autoencoder": ("color", "psnr", "psnr_quantised", "codebook"),
    "transformer": ("tokens", "right", "refiner", "residual_std"),
}
METRICS = {"psnr_y": ("PSNR-Y dB", 2), "ssim_y": ("SSIM-Y", 3), "gmsd": ("GMSD", 3), "energy": ("energy", 2)}


def record(runs: dict[str, Path]) -> None:
    """Keep each run's log, its seconds and its machine with the results."""
    result: dict[str, Any] = {
        "benchmark": "training",
        "model": DEFAULT_MODEL,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"processor": processor(), "torch": torch.__version__},
        "stages": {},
    }
    for stage, folder in runs.items():
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        batch = json.loads((folder / "training.json").read_text())["optimizer"]["batch_size"]
        steps = [after["step"] - before["step"] for before, after in zip([{"step": 0}, *log], log, strict=False)]
        seconds = sum(n * batch / entry["images_per_s"] for n, entry in zip(steps, log, strict=True))
        stride = max(1, math.ceil(len(log) / CURVE_POINTS))
        curve = [e for i, e in enumerate(log) if i % stride == 0 or i == len(log) - 1]
        result["stages"][stage] = {"steps": log[-1]["step"], "batch": batch, "seconds": seconds, "curve": curve}
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(result, indent=1) + "\n")


def table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def facts() -> str:
    checkpoint = open_checkpoint(DEFAULT_MODEL)
    config, size = checkpoint.config, checkpoint.path.stat().st_size
    parts: dict[str, int] = {}
    for name, shape in checkpoint.shapes.items():
        part = "autoencoder" if name.startswith("vae.") else "refiner" if "diffloss" in name else "transformer"
        parts[part] = parts.get(part, 0) + math.prod(shape)
    rows = [
        ["parameters", f"{checkpoint.num_parameters:,} ({', '.join(f'{k} {v:,}' for k, v in parts.items())})"],
        ["file", f"{size / 2**20:.2f} MiB, {'/'.join(sorted(set(checkpoint.dtypes.values())))}"],
        [
            "tile",
            f"{config.image_side} x {config.image_side} pixels, {config.latent_side} x {config.latent_side} cells",
        ],
        ["scales", " ".join(map(str, config.patch_nums))],
        ["transformer", f"{config.depth} layers, width {config.embed_dim}, {config.num_heads} heads"],
        ["codebook", f"{config.vocab_size} entries of {config.latent_channels} channels"],
        ["refiner", f"width {config.refiner_width}, {config.refiner_depth} blocks, {config.refiner_steps} steps"],
        ["defaults", f"guidance {config.guidance_scale:g}, refiner temperature {config.refiner_temperature:g}"],
        *([key, value] for key, value in checkpoint.metadata.items()),
    ]
    return table(["", ""], rows)


def training() -> str:
    result = json.loads(RECORD.read_text())
    parts = []
    for stage, run in result["stages"].items():
        crops = run["steps"] * run["batch"]
        parts.append(
            f"**{stage}**: {run['steps']:,} steps of {run['batch']} crops ({crops:,}), {run['seconds'] / 60:.0f} "
            f"minutes on two cores of {result['machine']['processor']}, torch {result['machine']['torch']}, "
            f"{result['date']}. Means over the last 20 steps:"
        )
        rows = [[f"{e['step']:,}", *(f"{e[c]:.3f}" for c in CURVES[stage])] for e in run["curve"]]
        parts.append(table(["step", *CURVES[stage]], rows))
    return "\n\n".join(parts)


def latest(pattern: str) -> dict[str, Any]:
    files = [
        path for path in (RESULTS / "quality").glob(pattern) if pattern.count("ablation") or "ablation" not in path.name
    ]
    if not files:
        return {}
    loaded: dict[str, Any] = json.loads(max(files, key=lambda path: path.stat().st_mtime).read_text())
    return loaded


def quality(result: dict[str, Any]) -> str:
    """Means over the photographs, a line a degradation and upscaler."""
    if not result:
        return "Not measured yet."
    where = f"Commit {result['commit']}, {result['date']}, {result['machine']['processor']}, seed {result['seed']}."
    if result["runs"]:
        where += f" Settings beyond the model's defaults: {json.dumps(result['runs'])}."
    rows = [
        [r["degradation"], r["upscaler"], *(f"{r['scores'][m]:.{digits}f}" for m, (_, digits) in METRICS.items())]
        for r in result["means"]
    ]
    return where + "\n\n" + table(["degradation", "upscaler", *(heading for heading, _ in METRICS.values())], rows)


def replace_section(text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def main() -> None:
    if sys.argv[1:2] == ["record"]:
        record(dict(zip(CURVES, map(Path, sys.argv[2:4]), strict=True)))
    sections = {
        "facts": facts(),
        "training": training(),
        "quality": quality(latest(f"{DEFAULT_MODEL}-2*.json")),
        "ablation": quality(latest(f"{DEFAULT_MODEL}-ablation-2*.json")),
    }
    text = CARD.read_text()
    for name, content in sections.items():
        text = replace_section(text, name, content)
    CARD.write_text(text)


if __name__ == "__main__":
    main()
