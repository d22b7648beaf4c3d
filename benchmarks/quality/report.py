"""Tables of an evaluation in Markdown, and strips of pictures to look at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.quality.evaluation import Case, Row, means
from benchmarks.quality.metrics import Pixels

# metric: (heading, digits, better is)
COLUMNS = {
    "psnr_y": ("PSNR-Y dB ↑", 2),
    "ssim_y": ("SSIM-Y ↑", 4),
    "gmsd": ("GMSD ↓", 4),
    "energy": ("energy → 1", 3),
    "color": ("colour error ↓", 2),
}
NOTES = """Photographs held out from training: central 256×256 crops at full resolution, degraded ×4 with fixed seeds.
mild: bicubic, noise σ 2, JPEG 90. hard: blur σ 1.4, bicubic, noise σ 7, JPEG 65. second_order: one random draw a
photograph of the training pipeline. PSNR and SSIM (Gaussian 11×11, σ 1.5) on BT.601 Y, no border cut. GMSD on
luminance halved, c 0.0026. Energy: of the luminance above 1/8 cycle a pixel, the low-resolution Nyquist, over the
truth's. Colour error: RMSE of Cb and Cr averaged over 8×8 pixels, in 1/255."""
CAPTION = 14


def table(rows: Sequence[Row]) -> str:
    """One line a row: who, the scores, the seconds."""
    lines = [f"| photograph | upscaler | {' | '.join(h for h, _ in COLUMNS.values())} | seconds |"]
    lines.append("| --- | --- |" + " --- |" * (len(COLUMNS) + 1))
    for row in rows:
        cells = " | ".join(f"{row.scores[name]:.{digits}f}" for name, (_, digits) in COLUMNS.items())
        lines.append(f"| {row.photo} | {row.upscaler} | {cells} | {row.seconds:.3f} |")
    return "\n".join(lines)


def verdicts(rows: Sequence[Row], upscaler: str, baseline: str = "bicubic") -> dict[str, dict[str, Any]]:
    """By degradation: differences of the means from the baseline's, and whether each is what a good upscaler shows."""
    by_name = {(r.degradation, r.upscaler): r.scores for r in means(rows)}
    result: dict[str, dict[str, Any]] = {}
    for degradation in dict.fromkeys(r.degradation for r in rows):
        ours, base = by_name[degradation, upscaler], by_name[degradation, baseline]
        result[degradation] = {
            "psnr_y_gain": ours["psnr_y"] - base["psnr_y"],
            "ssim_y_gain": ours["ssim_y"] - base["ssim_y"],
            "gmsd_better": ours["gmsd"] < base["gmsd"],
            "energy_nearer_1": _distance(ours["energy"]) < _distance(base["energy"]),
        }
    return result


def _distance(ratio: float) -> float:
    """How far a ratio is from 1: twice too much is as far as half."""
    return abs(math.log(max(ratio, 1e-12)))


def markdown(title: str, facts: str, rows: Sequence[Row], ours: Sequence[str]) -> str:
    """The whole report: means and verdicts a degradation, then every photograph."""
    averages = means(rows)
    parts = [f"# {title}", facts, NOTES]
    for degradation in dict.fromkeys(r.degradation for r in rows):
        parts += [f"## {degradation}", table([r for r in averages if r.degradation == degradation])]
        parts += [_sentence(name, verdicts(rows, name)[degradation]) for name in ours]
    for degradation in dict.fromkeys(r.degradation for r in rows):
        parts += [f"## Photographs, {degradation}", table([r for r in rows if r.degradation == degradation])]
    return "\n\n".join(parts) + "\n"


def _sentence(name: str, verdict: dict[str, Any]) -> str:
    said = {True: "yes", False: "no"}
    return (
        f"{name} against bicubic: PSNR-Y {verdict['psnr_y_gain']:+.2f} dB, SSIM-Y {verdict['ssim_y_gain']:+.4f}, "
        f"GMSD better: {said[verdict['gmsd_better']]}, energy nearer to 1: {said[verdict['energy_nearer_1']]}."
    )


def strip(case: Case, skip: Sequence[str] = ("lanczos",)) -> Image.Image:
    """Truth, low resolution (nearest), and the outputs side by side, each under its name."""
    height, width = case.truth.shape[:2]
    low = np.asarray(Image.fromarray(case.low).resize((width, height), Image.Resampling.NEAREST))
    panels: dict[str, Pixels] = {"truth": case.truth, f"input, {case.degradation}": low}
    panels |= {name: output for name, output in case.outputs.items() if name not in skip}
    image = Image.new("RGB", (width * len(panels), height + CAPTION), "white")
    draw = ImageDraw.Draw(image)
    for i, (name, pixels) in enumerate(panels.items()):
        draw.text((i * width + 4, 1), name, fill="black")
        image.paste(Image.fromarray(pixels), (i * width, CAPTION))
    return image
