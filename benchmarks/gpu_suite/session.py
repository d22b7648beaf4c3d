"""Runs the parts one after another in processes of their own, within the time given, and keeps what they find.

This process never touches the GPU: nothing that happens there takes it down.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_suite.settings import Settings
from benchmarks.gpu_suite.work import Result
from benchmarks.gpu_suite.worker import EXIT_BROKEN_CONTEXT

ROOT = Path(__file__).resolve().parents[2]
GRACE = 4.0  # seconds that a process gets, past its time, to finish the item that it is in
HEARTBEAT = 15.0  # seconds between progress lines, and between writes of what is there so far
LOG_TAIL = 1500


@dataclass(frozen=True)
class Part:
    """share: of the time, relative to the others; what a part leaves over goes to those behind it."""

    name: str
    share: float
    workers: int = 1  # processes at a time, for parts that time nothing


# What decides comes first. Times are estimates for 16 processor cores; see `time_limit` for how they are used.
PARTS = (
    Part("machine", 40),
    Part("compile", 75, workers=14),
    Part("checks", 70, workers=4),
    Part("parity", 60, workers=6),
    Part("engine", 95),
    Part("baselines", 110),
    Part("ops", 120),
    Part("profile", 20),
)
NAMES = tuple(part.name for part in PARTS)
ALWAYS = ("machine",)  # ceilings, which every table needs


@dataclass
class PartResult:
    status: str = "ok"  # ok, FAILED, cut
    seconds: float = 0.0
    limit_s: float = 0.0
    planned: list[str] = field(default_factory=list)
    items: dict[str, Result] = field(default_factory=dict)
    log_tail: str = ""

    @property
    def failed(self) -> list[str]:
        return [name for name, item in self.items.items() if item["status"] == "FAILED"]

    @property
    def left_out(self) -> list[str]:
        """Planned and not finished in time."""
        return [name for name in self.planned if self.items.get(name, {"status": "cut"})["status"] == "cut"]

    def to_dict(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "seconds": round(self.seconds, 2),
            "limit_s": round(self.limit_s, 1),
            "failed": self.failed,
            "cut": self.left_out,
            **({"log_tail": self.log_tail} if self.log_tail else {}),
            "items": self.items,
        }


def time_limit(part: Part, later: Sequence[Part], seconds_left: float) -> float:
    """A part's share of what is left: what earlier parts did not need is its own to use too."""
    return seconds_left * part.share / (part.share + sum(p.share for p in later))


class Shard:
    """One of a part's processes, and those that follow it where it dies."""

    def __init__(self, part: str, settings: Settings, folder: Path, index: int, count: int) -> None:
        self._part, self._settings = part, settings
        self._index, self._count = index, count
        self._file = folder / f"{part}-{index}.jsonl"
        self._log = folder / f"{part}-{index}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._read = 0
        self.running: str | None = None  # the item that it is in

    def start(self, seconds: float) -> None:
        command = [sys.executable, "-m", "benchmarks.gpu_suite.worker", "--part", self._part]
        command += ["--settings", self._settings.to_json(), "--file", str(self._file)]
        command += ["--seconds", f"{seconds:.1f}", "--shard", str(self._index), "--shards", str(self._count)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _environment(self) -> dict[str, str]:
        """Processor threads are shared out among the processes of a part."""
        threads = 1 if self._settings.dry_run else max(1, (os.cpu_count() or 1) // self._count)
        return {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def poll(self) -> int | None:
        assert self._process is not None
        return self._process.poll()

    def kill(self) -> None:
        """The process and everything that it started."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def take(self, result: PartResult) -> None:
        """What it has written since the last time."""
        if not self._file.exists():
            return
        with self._file.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._read += len(complete)
        for line in complete.splitlines():
            record = json.loads(line)
            kind, name = record["kind"], record.get("name", "")
            if kind == "plan":
                result.planned += [n for n in record["names"] if n not in result.planned]
            elif kind == "start":
                self.running = name
            else:
                self.running = None
                result.items[name] = record["result"]

    def tail(self) -> str:
        return self._log.read_text(errors="replace")[-LOG_TAIL:] if self._log.exists() else ""


class Session:
    def __init__(
        self,
        settings: Settings,
        minutes: float,
        folder: Path,
        on_change: Callable[[dict[str, PartResult]], None] = lambda results: None,
        say: Callable[[str], None] = lambda line: print(line, flush=True),
    ) -> None:
        """folder: for the workers' files. on_change is called with all results after each part and now and then."""
        self._settings, self._folder = settings, folder
        self._begin = time.monotonic()
        self._end = self._begin + 60 * minutes
        self._on_change, self._say_line = on_change, say
        self.results: dict[str, PartResult] = {}

    def say(self, text: str) -> None:
        self._say_line(f"[{time.monotonic() - self._begin:6.1f} s] {text}")

    def run(self, parts: Sequence[Part]) -> dict[str, PartResult]:
        for i, part in enumerate(parts):
            left = self._end - time.monotonic()
            limit = time_limit(part, parts[i + 1 :], left)
            self.say(f"{part.name}: at most {limit:.0f} s")
            result = self.results[part.name] = PartResult(limit_s=limit)
            if left <= 0:
                result.status, result.log_tail = "cut", "no time was left"
            else:
                self._run_part(part, result)
            self.say(f"{part.name}: {summary(result)}")
            self._on_change(self.results)
        return self.results

    def _run_part(self, part: Part, result: PartResult) -> None:
        start, result.status = time.monotonic(), "cut"  # should this process be stopped within it
        end = start + result.limit_s
        count = 1 if self._settings.dry_run else min(part.workers, os.cpu_count() or 1)
        shards = [Shard(part.name, self._settings, self._folder, i, count) for i in range(count)]
        try:
            for shard in shards:
                shard.start(result.limit_s)
            self._watch(shards, result, end)
        finally:
            for shard in shards:
                shard.kill()
                shard.take(result)
        for shard in shards:
            if shard.running is not None:  # killed within it
                result.items[shard.running] = {"status": "cut", "note": f"not done after {result.limit_s:.0f} s"}
        result.seconds = time.monotonic() - start
        unplanned = not result.planned and time.monotonic() < end  # its processes ended before they knew what to do
        result.status = "FAILED" if result.failed or unplanned else "cut" if result.left_out else "ok"
        if not result.planned and not unplanned:
            result.status = "cut"
        if result.status != "ok":
            result.log_tail = "\n".join(filter(None, (shard.tail() for shard in shards)))[-LOG_TAIL:]

    def _watch(self, shards: list[Shard], result: PartResult, end: float) -> None:
        alive, told = list(shards), time.monotonic()
        while alive and time.monotonic() < end + GRACE:
            time.sleep(0.05)
            for shard in list(alive):
                code = shard.poll()
                before = set(result.failed)
                shard.take(result)
                for name in set(result.failed) - before:
                    self.say(f"  FAILED {name}: {str(result.items[name].get('error', ''))[:200]}")
                if code is None:
                    continue
                alive.remove(shard)
                if code != 0 and self._goes_on(shard, code, result) and time.monotonic() < end:
                    shard.start(end - time.monotonic())
                    alive.append(shard)
            if time.monotonic() - told > HEARTBEAT:
                told = time.monotonic()
                self.say(f"  {len(result.items)} of {len(result.planned)} done")
                self._on_change(self.results)

    def _goes_on(self, shard: Shard, code: int, result: PartResult) -> bool:
        """Whether a process that ended early gets a successor: only if it got further than its predecessor."""
        if shard.running is not None:
            name, shard.running = shard.running, None
            note = f"its process ended with status {code}: {shard.tail()[-400:]}"
            result.items[name] = {"status": "FAILED", "error": note}
            self.say(f"  FAILED {name}: its process ended with status {code}")
            return True
        if code == EXIT_BROKEN_CONTEXT:
            self.say("  a new process goes on: the CUDA context was broken")
            return True
        result.items[f"process {len(result.items)}"] = {
            "status": "FAILED",
            "error": f"a process ended with status {code} before its first item: {shard.tail()[-400:]}",
        }
        return False


def summary(result: PartResult) -> str:
    count = {s: sum(i["status"] == s for i in result.items.values()) for s in ("ok", "FAILED", "not run")}
    text = f"{result.status}, {count['ok']} ok, {count['FAILED']} failed, {count['not run']} not run"
    if result.left_out:
        text += f", {len(result.left_out)} cut"
    return f"{text}, {result.seconds:.1f} s"
