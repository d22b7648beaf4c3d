"""Many clients on one server for a while: every answer right, to the bit, and nothing left behind.

    python -m benchmarks.serve_load --clients 16 --seconds 60

Starts `varsr serve` (varsr-mini, CPU) on this machine. Each client sends an image, waits for the answer, and sends the
next; images have one tile or several, and a seed. An answer is right if it is a 200 with the bytes that the engine
gives offline for the same image and seed, or a 429 while the queue is full (a client then waits as it is told).
Memory is the server's, after a tenth of the time and at the end. Then SIGTERM must end it with exit code 0.
Writes benchmarks/results/serving/<date>-<commit>-<options>.json; progress goes to stderr, the last line of stdout is
one JSON object, and the exit status is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import platform
import re
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from benchmarks.machine import ROOT, commit, processor
from varsr_engine import Engine

FOLDER = ROOT / "benchmarks" / "results" / "serving"
SIZES = ((8, 8), (16, 12), (24, 24), (32, 20), (32, 32), (40, 28))  # the last is of two tiles
GROWTH = 0.05  # of memory, that is still called flat


def source(index: int) -> bytes:
    """A PNG: a piece of examples/photo.jpg."""
    width, height = SIZES[index % len(SIZES)]
    with Image.open(ROOT / "examples" / "photo.jpg") as image:
        piece = image.convert("RGB").crop((7 * index, 5 * index, 7 * index + width, 5 * index + height))
    buffer = io.BytesIO()
    piece.save(buffer, "PNG")
    return buffer.getvalue()


def resident(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()


class Server:
    """`varsr serve` on a free port."""

    def __init__(self, options: list[str]) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("VARSR_")}
        command = [sys.executable, "-m", "varsr_engine", "serve", "--port", "0", "--device", "cpu", "--quiet"]
        command += ["--request-timeout", "600", "--drain-timeout", "600", *options]  # a slow machine is no error
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            print(line, end="", file=sys.stderr, flush=True)
            if line.startswith("ready: "):
                self.url = line.split()[1]
                break
        else:
            raise SystemExit("the server did not start")

    def batches(self) -> dict[str, int]:
        """How many batches had at most so many tiles, and more than the size before: {"1": n, "2": n, ...}."""
        text = httpx.get(f"{self.url}/metrics").text
        cumulative = re.findall(r'varsr_batch_rows_bucket\{le="([^"]+)"\} ([0-9.]+)', text)
        counts, before = {}, 0
        for size, count in cumulative:
            counts[size] = int(float(count)) - before
            before = int(float(count))
        return {size: count for size, count in counts.items() if count}

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(660)


def run(clients: int, seconds: float, options: list[str]) -> dict[str, Any]:
    sources = [source(i) for i in range(len(SIZES))]
    with Engine.from_pretrained("varsr-mini", device="cpu", numerics="batch_invariant") as engine:
        expected = [engine.upscale(data, seed=i).encode("PNG") for i, data in enumerate(sources)]
    server = Server(options)
    statuses, times, lock = Counter[str](), list[float](), threading.Lock()
    wrong = 0
    warm = 0
    start = time.monotonic()

    def client(first: int) -> None:
        nonlocal wrong, warm
        with httpx.Client(base_url=server.url, timeout=600) as session:
            for number in itertools.count(first):
                began = time.monotonic()
                if began - start > seconds:
                    return
                which = number % len(sources)
                answer = session.post(
                    f"/v1/upscale?seed={which}",
                    content=sources[which],
                    headers={"content-type": "image/png"},
                )
                took = time.monotonic() - began
                with lock:
                    statuses[str(answer.status_code)] += 1
                    if answer.status_code == 200:
                        times.append(took)
                        wrong += answer.content != expected[which]
                    elif answer.status_code != 429:
                        wrong += 1
                        print(answer.text, file=sys.stderr, flush=True)
                    if warm == 0 and time.monotonic() - start > seconds / 10:
                        warm = resident(server.process.pid)
                if answer.status_code == 429:
                    time.sleep(min(2.0, float(answer.headers["retry-after"])))

    try:
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(client, range(clients)))
        took = time.monotonic() - start
        end = resident(server.process.pid)
        batches = server.batches()
        code = server.stop()
    finally:
        if server.process.poll() is None:
            server.process.kill()
    ranked = statistics.quantiles(times, n=20) if len(times) > 1 else [0.0] * 19
    return {
        "clients": clients,
        "options": options,
        "seconds": round(took, 1),
        "answers": dict(sorted(statuses.items())),
        "wrong": wrong,
        "p50_s": round(statistics.median(times), 3) if times else None,
        "p95_s": round(ranked[18], 3),
        "per_second": round(len(times) / took, 2),
        "batch_sizes": batches,
        "warm_bytes": warm,
        "end_bytes": end,
        "growth": round(end / warm - 1, 4) if warm else None,
        "exit_code": code,
        "load_average": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--no-file", action="store_true", help="write no results")
    parser.add_argument("options", nargs="*", help="of varsr serve, after --")
    arguments = parser.parse_args()
    started_at = commit()
    measured = run(arguments.clients, arguments.seconds, arguments.options)
    machine = {"processor": processor(), "python": platform.python_version(), "commit": started_at}
    result = {
        "benchmark": "serve_load",
        "machine": machine,
        "date": time.strftime("%Y-%m-%d"),
        "model": "varsr-mini",
        **measured,
    }
    if not arguments.no_file:
        FOLDER.mkdir(parents=True, exist_ok=True)
        with_options = "".join(f"-{option.strip('-')}" for option in arguments.options)
        path = FOLDER / f"{result['date']}-{started_at.removesuffix('+')}{with_options}.json"
        path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
    flat = measured["growth"] is not None and measured["growth"] <= GROWTH
    sys.exit(
        0 if measured["wrong"] == 0 and flat and measured["exit_code"] == 0 and "200" in measured["answers"] else 1
    )


if __name__ == "__main__":
    main()
