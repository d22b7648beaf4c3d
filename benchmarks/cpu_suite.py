"""`make bench`: the engine on this CPU against the published way and against the machine, in a quarter of an hour.

    python -m benchmarks.cpu_suite                # all parts, then docs/benchmarks.md and README.md anew
    python -m benchmarks.cpu_suite --parts d24    # one of them

Each part is a program of its own, in a process of its own: what one has measured is kept whatever the next one does.
Results go to benchmarks/results/<machine>/. A part that cannot run here is named with its reason.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import tables
from benchmarks.machine import ROOT, identity, results_folder
from varsr_engine.engine.memory import available_bytes

D24_BYTES = 14 * 10**9  # both implementations on the same weights, in float32
D24_SECONDS = 400  # of rounds, beside the one that is always run
Part = Callable[[Path], list[str]]

PARTS: dict[str, Part] = {
    "mini": lambda folder: [
        *("benchmarks.bench_engine", "--model", "varsr-mini", "--repeat", "9"),
        *("--out", str(folder / "engine-varsr-mini.json")),
    ],
    "scaling": lambda folder: ["benchmarks.bench_scaling", "--out", str(folder / "scaling-varsr-mini.json")],
    "roofline": lambda folder: ["benchmarks.roofline", "--repeat", "2"],
    "d24": lambda folder: [
        *("benchmarks.bench_engine", "--model", "d24", "--repeat", "3", "--warm-up", "0"),
        *("--most-seconds", str(D24_SECONDS), "--out", str(folder / "engine-d24.json")),
    ],
}


def why_not(part: str) -> str | None:
    """Why a part cannot run on this machine."""
    free = available_bytes(torch.device("cpu"))
    if part == "d24" and free is not None and free < D24_BYTES:
        return f"needs {D24_BYTES / 1e9:.0f} GB of memory, {free / 1e9:.1f} GB are free"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    folder = results_folder(identity(torch.device("cpu")))
    failed = []
    for part in arguments.parts:
        start = time.monotonic()
        reason = why_not(part)
        if reason is not None:
            print(f"=== {part}: not run: {reason}", flush=True)
            continue
        print(f"=== {part}", flush=True)
        code = subprocess.run(
            [sys.executable, "-m", *PARTS[part](folder)], cwd=ROOT, stdout=subprocess.DEVNULL
        ).returncode
        print(
            f"=== {part}: {'ok' if code == 0 else f'FAILED, exit code {code}'}, {time.monotonic() - start:.0f} s",
            flush=True,
        )
        failed += [part] if code else []
    tables.main()
    print(f"results are in {folder.relative_to(ROOT)}, tables in docs/benchmarks.md and README.md")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
