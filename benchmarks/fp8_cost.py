"""What FP8 costs in quality: the same network with and without, its products emulated on a CPU.

    pip install -c constraints.txt -e '.[eval]'        # the photographs: scikit-image, scikit-learn
    python -m benchmarks.fp8_cost --docs               # golden tiny and small, varsr-mini on four photographs

No GPU runs here. `backend="torch"` multiplies what the e4m3 values and their scales stand for, in float32: rounding of
weights and activations is that of a GPU, sums are float32's. Writes JSON and Markdown to benchmarks/results/fp8/,
and with --docs the table of docs/quantization.md. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.forcing import forced_tokens
from benchmarks.machine import ROOT, commit, processor
from benchmarks.quality.evaluation import degraded
from benchmarks.quality.metrics import METRICS, Pixels
from benchmarks.quality.photographs import bundled_photographs
from benchmarks.tables import replaced
from tests.golden_cases import GOLDEN_FOLDER, load_case
from varsr_engine.checkpoint import write_checkpoint
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.generation import Generation
from varsr_engine.imaging import picture_from, resize_rgb, to_network_input

GOLDEN = ("tiny", "small")
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "china")
DEGRADATION = "mild"
# What is switched on, by its name in the tables: fields of EngineConfig.
MODES: dict[str, dict[str, str]] = {
    "all": {},
    "all steps but the first": {"fp8_steps": "1-{last_step}"},
    "all layers but first and last": {"fp8_layers": "1-{next_to_last_layer}"},
    "last step only": {"fp8_steps": "{last_step}"},
}
SAID = (
    "Emulated on a CPU: no GPU has run this mode. Agreement: the share of tokens that are those of the network without "
    "FP8, scale by scale, when each scale is given that network's tokens (forced), and when it runs on its own (free). "
    "Logits' error: relative, forced. Latent and image: PSNR of the free run against the network without FP8, the peak "
    "being the latent's range and 1. To the truth: PSNR-Y of the network's own picture, of one tile of a photograph "
    "degraded as the quality evaluation's `mild`, without FP8 → with it. tiny and small have random weights: their "
    "tokens are near ties, their pictures noise, and their rows are there for the logits."
)


@dataclass(frozen=True, slots=True)
class Row:
    """One mode on one input."""

    model: str
    input: str
    mode: str
    forced: list[float]  # share of equal tokens, a scale
    free: list[float]
    logits_error: list[float]  # relative, forced, a scale
    latent_psnr: float
    image_psnr: float
    truth_psnr: tuple[float, float] | None  # PSNR-Y against the photograph, without FP8 and with it


def psnr(a: torch.Tensor, b: torch.Tensor, peak: float) -> float:
    error = (a.double() - b.double()).square().mean().item()
    return 10 * math.log10(peak**2 / error) if error > 0 else math.inf


def equal_share(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> list[float]:
    return [(x == y).double().mean().item() for x, y in zip(a, b, strict=True)]


@dataclass(frozen=True, slots=True)
class Sample:
    """An input, the settings of its generation, and what the network makes of it without FP8."""

    label: str
    lr: torch.Tensor
    settings: dict[str, Any]
    truth: Pixels | None
    exact: Generation


def luminance_psnr(generation: Generation, truth: Pixels) -> float:
    pixels = (generation.images[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return METRICS["psnr_y"](pixels, truth)


def compare(model: str, mode: str, sample: Sample, fp8: Engine) -> Row:
    """A sample through an engine with FP8: with the same seeds, and the same noise of the refiner."""
    exact, free = sample.exact, fp8.generate(sample.lr, trace=True, **sample.settings)
    assert exact.trace is not None and free.trace is not None
    with forced_tokens(fp8, exact.trace.tokens) as chosen:
        forced = fp8.generate(sample.lr, trace=True, **sample.settings).trace
        assert forced is not None
    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(forced.logits, exact.trace.logits, strict=True)]
    truth = sample.truth
    return Row(
        model,
        sample.label,
        mode,
        equal_share(chosen, exact.trace.tokens),
        equal_share(free.trace.tokens, exact.trace.tokens),
        errors,
        psnr(free.latent, exact.latent, (exact.latent.max() - exact.latent.min()).item()),
        psnr(free.images, exact.images, 1.0),
        None if truth is None else (luminance_psnr(exact, truth), luminance_psnr(free, truth)),
    )


def golden_folder(name: str, parent: Path) -> Path:
    case = load_case(GOLDEN_FOLDER, name)
    weights = case.weights()
    return write_checkpoint(
        parent / name, case.config, {n: tuple(t.shape) for n, t in weights.items()}, weights.__getitem__
    )


def samples(model: str, plain: Engine) -> list[Sample]:
    """The golden input of a golden network, else photographs of one tile, degraded."""
    if model in GOLDEN:
        case = load_case(GOLDEN_FOLDER, model)
        assert case.lr is not None
        settings = {"labels": case.labels, "guidance_scale": case.guidance_scale, "noise": case.noise, "top_k": 1}
        return [Sample("golden", case.lr, settings, None, plain.generate(case.lr, trace=True, **settings))]
    side, found = plain.model_config.image_side, []
    for photo in bundled_photographs(side):
        if photo.name in PHOTOGRAPHS:
            picture = picture_from(degraded(photo, DEGRADATION), plain.config.read_limits)
            lr = to_network_input(resize_rgb(picture.rgb, (side, side), eight_bit=True))
            found.append(Sample(photo.name, lr, {}, photo.pixels, plain.generate(lr, trace=True)))
    return found


def measure(model: str, folder: Path | str) -> list[Row]:
    plain = Engine.from_pretrained(folder, device="cpu", backend="torch", quantization="none", local_files_only=True)
    config, rows, inputs = plain.model_config, [], samples(model, plain)
    words = {"last_step": config.num_scales - 1, "next_to_last_layer": config.depth - 2}
    for mode, switches in MODES.items():
        if config.depth <= 2 and "fp8_layers" in switches:
            continue
        chosen = {field: text.format(**words) for field, text in switches.items()}
        fp8 = Engine.from_pretrained(
            folder, device="cpu", backend="torch", quantization="fp8", local_files_only=True, **chosen
        )
        for sample in inputs:
            rows.append(compare(model, mode, sample, fp8))
            print(f"{model} {sample.label} {mode}: image {rows[-1].image_psnr:.1f} dB", flush=True)
    return rows


def averaged(rows: Sequence[Row]) -> list[Row]:
    """The mean over the inputs of each model and mode, dB as they are."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.mode), []).append(row)

    def mean(parts: list[list[float]]) -> list[float]:
        return [fmean(values) for values in zip(*parts, strict=True)]

    def pair(group: list[Row]) -> tuple[float, float] | None:
        pairs = [r.truth_psnr for r in group if r.truth_psnr is not None]
        return (fmean(p[0] for p in pairs), fmean(p[1] for p in pairs)) if pairs else None

    return [
        Row(
            model,
            group[0].input if len(group) == 1 else f"mean of {len(group)}",
            mode,
            mean([r.forced for r in group]),
            mean([r.free for r in group]),
            mean([r.logits_error for r in group]),
            fmean(r.latent_psnr for r in group),
            fmean(r.image_psnr for r in group),
            pair(group),
        )
        for (model, mode), group in groups.items()
    ]


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| network | input | FP8 in | forced % | free % | logits' error % | latent dB | image dB | to the truth dB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        shares = (" ".join(f"{100 * share:.0f}" for share in values) for values in (r.forced, r.free))
        errors = " ".join(f"{100 * error:.1f}" for error in r.logits_error)
        truth = "" if r.truth_psnr is None else "{:.2f} → {:.2f}".format(*r.truth_psnr)
        cells = (r.model, r.input, r.mode, *shares, errors, f"{r.latent_psnr:.1f}", f"{r.image_psnr:.1f}", truth)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--models", nargs="+", default=["tiny", "small", "varsr-mini"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "fp8")
    parser.add_argument("--docs", action="store_true", help="also rewrite the table of docs/quantization.md")
    args = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            golden = model in GOLDEN
            rows += measure(model, golden_folder(model, Path(folder)) if golden else model)
    means = averaged(rows)
    result = {
        "benchmark": "fp8_cost",
        "emulated": "on a CPU, by the reference; no GPU has run this mode",
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "python": platform.python_version(),
        "degradation": DEGRADATION,
        "modes": MODES,
        "means": [asdict(r) for r in means],
        "rows": [asdict(r) for r in rows],
    }
    facts = f"Commit {result['commit']}, {result['date']}, {processor()}, torch {torch.__version__}."
    stem = f"emulated-{result['date']}-{str(result['commit']).replace('+', '-changed')}"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{stem}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    text = "\n\n".join(("# What FP8 costs, emulated", facts, SAID, table(means), "## Each input", table(rows)))
    (args.out / f"{stem}.md").write_text(text + "\n")
    if args.docs:
        page = ROOT / "docs" / "quantization.md"
        page.write_text(replaced(page.read_text(), "fp8 cost", f"{facts} {SAID}\n\n{table(means)}"))
    print(json.dumps({key: result[key] for key in ("benchmark", "commit", "means")}))


if __name__ == "__main__":
    main()
