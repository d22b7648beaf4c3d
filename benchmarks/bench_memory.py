"""Peak memory and time of large images on the CPU, each in a process of its own.

    python -m benchmarks.bench_memory --megapixels 4 11 16 64

An image of that many megapixels of output is upscaled by 4 with varsr-mini into a PNG, through `Engine.upscale_to`.
Peak: the largest resident memory, less what it was when the engine was loaded and had run one tile. The photograph
repeats every four tiles, and a tile whose input was seen before (in 8 bits) takes its latent from then: of the 7,000
tiles of 64 megapixels only the first can change the peak. --every-tile runs them all. Writes
benchmarks/results/memory/<date>-<commit>.json; `python -m benchmarks.bench_memory --plot` draws the newest into docs/.
Progress goes to stderr, the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.machine import ROOT, commit, processor
from benchmarks.plots import line_plot
from varsr_engine import Engine
from varsr_engine.engine.generation import Sample
from varsr_engine.engine.request import BatchRequest

FOLDER = ROOT / "benchmarks" / "results" / "memory"
SCALE, ASPECT = 4, 10 / 7
PERIOD = 96  # pixels of the source: four tiles of varsr-mini less their overlaps
UNIT = 1024 if sys.platform != "darwin" else 1  # of ru_maxrss


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def photograph(width: int, height: int) -> Image.Image:
    """examples/photo.jpg, mirrored and repeated: detail everywhere, and no seam of its own."""
    with Image.open(ROOT / "examples" / "photo.jpg") as image:
        source = np.asarray(image.convert("RGB"))[: PERIOD // 2, : PERIOD // 2]
    tile = np.concatenate([source, source[:, ::-1]], axis=1)
    tile = np.concatenate([tile, tile[::-1]], axis=0)
    rows, columns = math.ceil(height / tile.shape[0]), math.ceil(width / tile.shape[1])
    return Image.fromarray(np.tile(tile, (rows, columns, 1))[:height, :width])


class Memo:
    """In place of a pipeline's `sample`: latents by input, for a model without noise."""

    def __init__(self, engine: Engine) -> None:
        assert engine.model_config.refiner_temperature == 0 and engine.model_config.top_k == 1, "there is noise"
        self._sample = engine._pipeline.sample
        self.latents: dict[bytes, torch.Tensor] = {}

    def __call__(self, lr: torch.Tensor, request: BatchRequest, *, seeds: torch.Tensor, **settings: Any) -> Sample:
        keys = [((row + 1) * 127.5).round().byte().numpy().tobytes() for row in lr]
        new = [i for i, key in enumerate(keys) if key not in self.latents]
        seconds: dict[str, float] = {}
        if new:
            rows = BatchRequest.joined([request.row(i) for i in new])
            made = self._sample(lr[new], rows, seeds=seeds[new], **settings)
            self.latents |= {keys[i]: latent.half() for i, latent in zip(new, made.latent, strict=True)}
            seconds = made.seconds
        latent = torch.stack([self.latents[key].float() for key in keys])
        return Sample(latent, torch.zeros(len(keys), 0, dtype=torch.int64), seconds)


def measure(megapixels: float, every_tile: bool) -> dict[str, Any]:
    """One image in this process, which must not have run one before."""

    height = round(math.sqrt(megapixels * 1e6 / ASPECT) / SCALE)
    width = round(megapixels * 1e6 / SCALE**2 / height)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.png"
        photograph(width, height).save(source)
        engine = Engine.from_pretrained("varsr-mini", device="cpu")
        engine.upscale(np.zeros((16, 16, 3), np.uint8))
        memo = None if every_tile else Memo(engine)
        if memo is not None:
            engine._pipeline.sample = memo  # type: ignore[method-assign]
        idle, start = resident(), time.perf_counter()
        reported = start

        def on_tiles(done: int, total: int) -> None:
            nonlocal reported
            if time.perf_counter() - reported > 20:
                reported = time.perf_counter()
                print(f"{megapixels} megapixels: {done} of {total} tiles", file=sys.stderr, flush=True)

        report, _ = engine.upscale_to(source, Path(folder) / "out.png", on_tiles=on_tiles)
        seconds = time.perf_counter() - start
        written = (Path(folder) / "out.png").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
    return {
        "megapixels": round(report.size[0] * report.size[1] / 1e6, 2),
        "size": list(report.size),
        "tiles": report.tiles,
        "tiles_run": report.tiles if memo is None else len(memo.latents),
        "seam_score": report.seam_score,
        "seconds": round(seconds, 1),
        "idle_bytes": idle,
        "peak_over_idle_bytes": peak - idle,
        "png_bytes": written,
    }


def newest() -> dict[str, Any]:
    """The results of the last run."""
    files = [json.loads(path.read_text()) for path in FOLDER.glob("*.json")]
    return max((f for f in files if "tiles_run" in f["images"][0]), key=lambda f: (f["date"], f.get("time", "")))


def plot() -> None:
    """docs/memory.svg: peak over idle against megapixels of output."""
    result = newest()
    points = [(image["megapixels"], image["peak_over_idle_bytes"] / 1e6) for image in result["images"]]
    machine = result["machine"]
    title = "Memory over the idle process (MB) against megapixels of output"
    (ROOT / "docs" / "memory.svg").write_text(
        line_plot(points, title, f"varsr-mini, {machine['processor']}, {machine['commit']}, {result['date']}")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=float, nargs="+", default=[4, 11.2, 16, 32, 64])
    parser.add_argument("--every-tile", action="store_true", help="run tiles that were seen before too")
    parser.add_argument("--plot", action="store_true", help="draw the newest results, and measure nothing")
    parser.add_argument("--one", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        return print(json.dumps(measure(arguments.one, arguments.every_tile)))
    if arguments.plot:
        return plot()
    started_at = commit()
    path = FOLDER / f"{time.strftime('%Y-%m-%d')}-{started_at.removesuffix('+')}.json"
    rows: list[dict[str, Any]] = []
    for megapixels in arguments.megapixels:
        command = [sys.executable, "-m", "benchmarks.bench_memory", "--one", str(megapixels)]
        command += ["--every-tile"] if arguments.every_tile else []
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        result = {
            "benchmark": "memory",
            "machine": {
                "processor": processor(),
                "threads": torch.get_num_threads(),
                "python": platform.python_version(),
                "commit": started_at,
            },
            "date": time.strftime("%Y-%m-%d"),
            "time": time.strftime("%H:%M"),
            "model": "varsr-mini",
            "images": sorted(rows, key=lambda row: row["megapixels"]),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n")  # after each: an hour's work is not lost with the last
    print(json.dumps(result))


if __name__ == "__main__":
    main()
