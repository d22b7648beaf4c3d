"""Quality on held-out photographs: bicubic, Lanczos and a model, ×4, under mild, hard and second-order degradation.

    pip install -c constraints.txt -e '.[eval]'                # the photographs: scikit-image, scikit-learn
    python -m benchmarks.eval_quality                          # the shipped model
    python -m benchmarks.eval_quality --model FOLDER --cfg 2 --no-refiner
    python -m benchmarks.eval_quality --model none             # the baselines only
    python -m benchmarks.eval_quality --ablate --cfg 0 1 2 4   # guidance × refiner (on, off)

Writes JSON and Markdown to benchmarks/results/quality/ and strips of pictures to out/quality/. The last line of stdout
is one JSON object: the means.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import platform
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import ROOT, commit, processor
from benchmarks.quality.evaluation import (
    DEGRADATIONS,
    Case,
    Row,
    Upscaler,
    classical_upscalers,
    engine_upscaler,
    evaluate,
    means,
)
from benchmarks.quality.photographs import CROP, bundled_photographs, folder_photographs
from benchmarks.quality.report import COLUMNS, markdown, strip, verdicts
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.params import UpscaleParams

SHIPPED_MODEL = "varsr-mini"
ABLATED_CFG = (0.0, 1.0, 2.0, 4.0)
ABLATED_TEMPERATURES = (0.0, 0.5, 1.0)
REFINER_TEMPERATURE = "refiner_temperature"  # a field of UpscaleParams where the engine has it


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default=SHIPPED_MODEL, help="folder, file or name; none: the baselines only")
    parser.add_argument("--cfg", type=float, nargs="+", help="guidance, several with --ablate (default: the model's)")
    parser.add_argument("--no-refiner", action="store_true", help="leave the diffusion refiner out")
    parser.add_argument("--refiner-temperature", type=float, nargs="+", help="where the engine has that option")
    parser.add_argument("--color-fix", default=None, help="none, adain or wavelet (default: the engine's)")
    parser.add_argument("--seed", type=int, default=0, help="of the model's noise and of the degradations")
    parser.add_argument("--ablate", action="store_true", help="every combination of guidance and refiner")
    parser.add_argument("--degradations", nargs="+", choices=DEGRADATIONS, default=list(DEGRADATIONS))
    parser.add_argument("--photos", type=Path, help="a folder of pictures instead of the bundled photographs")
    parser.add_argument("--crop", type=int, default=CROP, help="side of the central crop in pixels, a multiple of 4")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "quality")
    parser.add_argument("--strips", type=Path, default=ROOT / "out" / "quality", help="folder of the pictures")
    args = parser.parse_args()
    if args.cfg and len(args.cfg) > 1 and not args.ablate:
        parser.error("several values of --cfg need --ablate")
    if args.crop < 16 or args.crop % 4:
        parser.error(f"--crop must be a multiple of 4 from 16 on, got {args.crop}")
    return args


def variants(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Name and parameters of each way to run the model: one, or the grid of an ablation."""
    common: dict[str, Any] = {"seed": args.seed}
    if args.color_fix is not None:
        common["color_fix"] = args.color_fix
    known = {f.name for f in dataclasses.fields(UpscaleParams)}
    if args.refiner_temperature and REFINER_TEMPERATURE not in known:
        raise SystemExit("eval_quality: this engine has no refiner temperature")
    if not args.ablate:
        params = dict(common, refiner="off" if args.no_refiner else "on")
        params |= {"cfg": args.cfg[0]} if args.cfg else {}
        params |= {REFINER_TEMPERATURE: args.refiner_temperature[0]} if args.refiner_temperature else {}
        return {"ours": params}
    refiners: list[dict[str, Any]] = [{"refiner": "off"}, {"refiner": "on"}]
    if REFINER_TEMPERATURE in known:
        temperatures = args.refiner_temperature or ABLATED_TEMPERATURES
        refiners = [{"refiner": "off"}] + [{"refiner": "on", REFINER_TEMPERATURE: t} for t in temperatures]
    grid = itertools.product(args.cfg or ABLATED_CFG, refiners)
    combined = {_name(cfg, refiner): common | {"cfg": cfg} | refiner for cfg, refiner in grid}
    return {"defaults": common, "fidelity 0": common | {"fidelity": 0.0}, **combined}


def _name(cfg: float, refiner: dict[str, Any]) -> str:
    temperature = f" t={refiner[REFINER_TEMPERATURE]:g}" if REFINER_TEMPERATURE in refiner else ""
    return f"cfg {cfg:g} refiner {refiner['refiner']}{temperature}"


def show(rows: list[Row]) -> None:
    """Means and photographs, a table each degradation."""
    console = Console()
    console.width = max(console.width, 110)  # where stdout is a file, rich takes 80
    averages = means(rows)
    for degradation in dict.fromkeys(r.degradation for r in rows):
        grid = Table(title=degradation)
        for heading in ("photograph", "upscaler", *(h for h, _ in COLUMNS.values()), "seconds"):
            grid.add_column(heading, justify="left" if heading in ("photograph", "upscaler") else "right")
        for row in [r for r in rows + averages if r.degradation == degradation]:
            scores = [f"{row.scores[name]:.{digits}f}" for name, (_, digits) in COLUMNS.items()]
            style = "bold" if row.photo == "mean" else None
            grid.add_row(row.photo, row.upscaler, *scores, f"{row.seconds:.3f}", style=style)
        console.print(grid)


def main() -> None:
    args = arguments()
    photographs = folder_photographs(args.photos, args.crop) if args.photos else bundled_photographs(args.crop)
    upscalers: dict[str, Upscaler] = classical_upscalers()
    model, runs = "baselines", {}
    if args.model != "none":
        engine = Engine.from_pretrained(args.model, local_files_only=True)
        model, runs = engine.model_id, variants(args)
        upscalers |= {name: engine_upscaler(engine, **params) for name, params in runs.items()}

    def save_strip(case: Case) -> None:
        folder = args.strips / model
        folder.mkdir(parents=True, exist_ok=True)
        strip(case).save(folder / f"{case.photo}-{case.degradation}.png", optimize=True)

    rows = evaluate(upscalers, photographs, args.degradations, seed=args.seed, on_case=save_strip)
    show(rows)
    result = {
        "benchmark": "quality",
        "model": model,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "python": platform.python_version(),
        "seed": args.seed,
        "crop": args.crop,
        "runs": runs,
        "verdicts": {name: verdicts(rows, name) for name in runs},
        "means": [dataclasses.asdict(r) for r in means(rows)],
        "rows": [dataclasses.asdict(r) for r in rows],
    }
    ablation = "-ablation" if args.ablate else ""
    stem = f"{model}{ablation}-{result['date']}-{str(result['commit']).replace('+', '-changed')}"
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{stem}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    facts = f"Commit {result['commit']}, {result['date']}, {processor()}, torch {torch.__version__}, seed {args.seed}."
    (args.out / f"{stem}.md").write_text(markdown(f"Quality of {model}, ×4", facts, rows, list(runs)))
    print(json.dumps({key: result[key] for key in ("benchmark", "model", "commit", "verdicts", "means")}))


if __name__ == "__main__":
    main()
