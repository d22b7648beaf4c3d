"""A process that runs the items of one part and writes a JSON line when one starts and when it ends.

The session reads the lines while they come. What is in the file when a process starts counts as done, so that a process
that died is followed by one that goes on behind the item that killed it.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from benchmarks.gpu_suite.settings import Settings
from benchmarks.gpu_suite.work import Clock, Item, NotRun, Result

MEMORY_TRIES, MEMORY_PAUSE = 4, 1.5
EXIT_BROKEN_CONTEXT = 75  # CUDA refuses everything after an illegal access: only a new process helps
MODULES = {
    "machine": "ceilings",
    "compile": "compile_kernels",
    "checks": "checks",
    "parity": "parity",
    "engine": "engine_times",
    "baselines": "baselines",
    "ops": "op_times",
    "profile": "profile",
}


def write(file: TextIO, **record: Any) -> None:
    file.write(json.dumps(record) + "\n")
    file.flush()


def started_before(path: Path) -> set[str]:
    """Names of the items that an earlier process of this file has begun."""
    if not path.exists():
        return set()
    records = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return {r["name"] for r in records if r["kind"] == "start"}


def own_share(items: list[Item], shard: int, shards: int) -> list[Item]:
    """The items of every shards-th group."""
    groups = list(dict.fromkeys(item.group or item.name for item in items))
    mine = set(groups[shard::shards])
    return [item for item in items if (item.group or item.name) in mine]


def synchronise(settings: Settings) -> None:
    """Wait for the device: an error that a kernel left behind is raised here."""
    if settings.device == "cuda":
        import torch

        torch.cuda.synchronize()


def context_is_broken(settings: Settings) -> bool:
    try:
        synchronise(settings)
    except Exception:
        return True
    return False


def run_with_memory(item: Item) -> Result:
    """item.run(), again where memory ran out: other processes of the part take theirs, for a moment."""
    for _ in range(MEMORY_TRIES - 1):
        try:
            return item.run()
        except Exception as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which a part need not have imported
                raise
        import torch

        gc.collect()
        torch.cuda.empty_cache()
        time.sleep(MEMORY_PAUSE)
    return item.run()


def run_item(item: Item, settings: Settings) -> Result:
    """The item's result; an error becomes one, with its text."""
    start = time.monotonic()
    try:
        result = run_with_memory(item)
        if item.on_device:
            synchronise(settings)
    except NotRun as reason:
        result = {"status": "not run", "note": str(reason)}
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        result = {"status": "FAILED", "error": text[:2000], "traceback": traceback.format_exc()[-2000:]}
    return {"status": "ok", **result, "seconds": round(time.monotonic() - start, 3)}


def load(part: str) -> Any:
    """The module that holds a part's items: one of ours, or any other by its dotted name."""
    return importlib.import_module(part if "." in part else f"benchmarks.gpu_suite.{MODULES[part]}")


def run_part(part: str, settings: Settings, path: Path, seconds: float, shard: int, shards: int) -> int:
    clock, done, session = Clock(seconds), started_before(path), os.getppid()
    with path.open("a") as file:
        items = own_share(load(part).items(settings, clock), shard, shards)
        write(file, kind="plan", names=[item.name for item in items])
        for item in items:
            if item.name in done:
                continue
            if clock.left <= 0 or os.getppid() != session:  # out of time, or nobody waits any more
                break
            write(file, kind="start", name=item.name)
            result = run_item(item, settings)
            write(file, kind="result", name=item.name, result=result)
            if result["status"] == "FAILED" and item.on_device and context_is_broken(settings):
                return EXIT_BROKEN_CONTEXT
    return 0


def run_by_hand(part: str, settings: Settings, match: str) -> int:
    """Items whose name contains `match`, printed: for a debugger or a profiler around this process."""
    failed = False
    for item in load(part).items(settings, Clock(3600.0)):
        if match in item.name:
            result = run_item(item, settings)
            failed = failed or result["status"] == "FAILED"
            print(item.name, json.dumps(result), flush=True)
    return int(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", required=True, help=f"one of {', '.join(MODULES)}")
    parser.add_argument("--settings", help="JSON of the settings; else those of --device")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run")
    parser.add_argument("--file", type=Path, help="where the lines go")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--shard", type=int, default=0)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--match", default="", help="without --file: run and print the items whose name contains this")
    args = parser.parse_args()
    if args.settings:
        settings = Settings.from_json(args.settings)
    else:
        settings = Settings() if args.device == "cuda" else Settings.dry()
    if args.file is None:
        return run_by_hand(args.part, settings, args.match)
    return run_part(args.part, settings, args.file, args.seconds, args.shard, args.shards)


if __name__ == "__main__":
    sys.exit(main())
