"""Many requests at once, some of them bad, for long: every one answered rightly, and nothing left behind.

    python -m benchmarks.soak --requests 2000

16 threads send images of several sizes to one engine (varsr-mini, CPU): about 5 % are corrupt files, 5 % are cancelled,
the rest must have the pixels of the same image upscaled alone (within 1 of 255: batches change rounding). Memory is
compared after a tenth of the requests and at the end. Writes benchmarks/results/soak/<date>-<commit>.json; progress
goes to stderr, the last line of stdout is one JSON object, and the exit status is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import json
import platform
import random
import resource
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.machine import ROOT, commit, processor
from varsr_engine import Engine
from varsr_engine.engine.parts import return_free_memory
from varsr_engine.errors import InputError, QueueFullError, RequestCancelled

FOLDER = ROOT / "benchmarks" / "results" / "soak"
SIZES = ((8, 8), (16, 12), (24, 24), (32, 20), (32, 32), (40, 28), (60, 40))  # the last two are of several tiles
THREADS, CORRUPT, CANCELLED = 16, 0.05, 0.05


def resident() -> int:
    gc.collect()
    return_free_memory()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def source(index: int) -> bytes:
    """A PNG: a piece of examples/photo.jpg."""
    width, height = SIZES[index % len(SIZES)]
    with Image.open(ROOT / "examples" / "photo.jpg") as image:
        piece = image.convert("RGB").crop((index % 60, index % 50, index % 60 + width, index % 50 + height))
    buffer = io.BytesIO()
    piece.save(buffer, "PNG")
    return buffer.getvalue()


def right(engine: Engine, data: bytes, expected: np.ndarray, chance: random.Random, counts: Counter[str]) -> bool:
    """Send one request; whether its outcome is the right one."""
    kind = chance.random()
    if kind < CORRUPT:
        data = data[: len(data) // 2]
    while True:
        try:
            handle = engine.submit(data)
            break
        except QueueFullError:
            counts["queue full"] += 1
            time.sleep(0.05)
        except InputError:
            counts["corrupt"] += 1
            return kind < CORRUPT
    if kind < CORRUPT:
        return False
    if kind < CORRUPT + CANCELLED:
        time.sleep(chance.random() * 0.2)
        if handle.cancel():
            counts["cancelled"] += 1
            return isinstance(handle.exception(10), RequestCancelled)
    pixels = handle.result(600).array.astype(int)
    counts["upscaled"] += 1
    return pixels.shape == expected.shape and int(np.abs(pixels - expected).max()) <= 1


def run(requests: int) -> dict[str, Any]:
    engine = Engine.from_pretrained("varsr-mini", device="cpu")
    sources = [source(i) for i in range(len(SIZES) * 3)]
    alone = [engine.upscale(data).array.astype(int) for data in sources]
    before, counts, wrong = threading.active_count(), Counter[str](), 0
    numbers, lock, start = itertools.count(), threading.Lock(), time.perf_counter()
    warm = 0

    def client(seed: int) -> None:
        nonlocal wrong, warm
        chance = random.Random(seed)
        while (number := next(numbers)) < requests:
            which = chance.randrange(len(sources))
            ok = right(engine, sources[which], alone[which], chance, counts)
            with lock:
                wrong += not ok
                if number == requests // 10:
                    warm = resident()
            if number % 100 == 0:
                print(f"{number} of {requests}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(client, range(THREADS)))
    seconds = time.perf_counter() - start
    stats = engine.stats()
    engine.close(30)
    end = resident()
    return {
        "requests": requests,
        "seconds": round(seconds, 1),
        "outcomes": dict(counts),
        "wrong": wrong,
        "batch_sizes": stats.batch_sizes,
        "queued_units": stats.queued_units,
        "busy_share": round(stats.busy_seconds / seconds, 4),
        "warm_bytes": warm,
        "end_bytes": end,
        "growth": round(end / warm - 1, 4),
        "threads_left": threading.active_count() - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    arguments = parser.parse_args()
    started_at = commit()
    measured = run(arguments.requests)
    machine = {"processor": processor(), "python": platform.python_version(), "commit": started_at}
    result = {
        "benchmark": "soak",
        "machine": machine,
        "date": time.strftime("%Y-%m-%d"),
        "model": "varsr-mini",
        **measured,
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{result['date']}-{started_at.removesuffix('+')}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    bad = measured["wrong"] or measured["threads_left"] or measured["queued_units"] or measured["growth"] > 0.03
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
