"""The result file of a run: what is in it, where it lies, and that nothing is lost when a part is stopped."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_suite.report import commit
from benchmarks.machine import ROOT
from varsr_engine.atomic import atomic_writer

FOLDER = ROOT / "benchmarks" / "results" / "diffusion"
COUNTS = FOLDER / "counts.json"
FORMAT = 1

Content = dict[str, Any]


class Results:
    """One JSON file and the Markdown beside it. Parts write to it one after another, each what it has so far."""

    def __init__(self, path: Path) -> None:
        """Goes on with the file if it is there. Raises ValueError for one of another format."""
        self.path = path
        self.content: Content = json.loads(path.read_text()) if path.exists() else {}
        if self.content and self.content.get("format") != FORMAT:
            raise ValueError(f"{str(path)!r} must be of format {FORMAT}; move it away and run again")

    @classmethod
    def start(cls, folder: Path, smoke: bool, commit_name: str | None) -> Results:
        """<folder>/<date>-<commit>.json, new or begun by an earlier part; a smoke run's name says so."""
        name, date = commit_name or commit(), time.strftime("%Y-%m-%d")
        results = cls(folder / f"{'smoke-' if smoke else ''}{date}-{name}.json")
        if not results.content:
            results.content = {
                "benchmark": "diffusion",
                "format": FORMAT,
                "smoke": smoke,
                "measures": "nothing: a smoke run of small networks" if smoke else "speed",
                "commit": name,
                "date": date,
                "time": time.strftime("%H:%M:%S"),
                "machine": {},
                "parts": {},
            }
        results.write()
        return results

    def machine(self, facts: dict[str, Any]) -> None:
        """Where this part runs. Raises ValueError where an earlier part of the file ran on something else."""
        before = self.content["machine"].get("processor")
        if before not in (None, facts["processor"]):
            raise ValueError(
                f"{str(self.path)!r} was begun on {before}, not on {facts['processor']}; use another --out"
            )
        self.content["machine"] = facts

    def part(self, name: str) -> Content:
        """A part's record: status (running, ok, FAILED, cut), its groups by name, and facts of the run."""
        empty: Content = {"status": "running", "groups": {}}
        found: Content = self.content["parts"].setdefault(name, empty)
        return found

    def write(self) -> None:
        from benchmarks.diffusion.tables import page

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(self.path) as file:
            file.write((json.dumps(self.content, indent=1) + "\n").encode())
        with atomic_writer(self.path.with_suffix(".md")) as file:
            file.write(page(self.content).encode())


def faults(content: Content) -> list[str]:
    """Everything that is wrong in a result, by part, group and contestant."""
    found = []
    for part, record in content["parts"].items():
        if record["status"] == "FAILED":
            found.append(f"{part}: {record.get('error', 'failed')}")
        for group, data in record["groups"].items():
            for name, row in data["rows"].items():
                found += [f"{part}, {group}, {name}: {text}" for text in row.get("faults", ())]
                if "failed" in row:
                    found.append(f"{part}, {group}, {name}: {row['failed']}")
    return found


def newest() -> Content | None:
    """The latest measurement of a GPU; None: there is none. Smoke runs and CPUs never count."""
    found = []
    for path in FOLDER.glob("*.json"):
        content = json.loads(path.read_text())
        if content.get("benchmark") == "diffusion" and not content["smoke"] and content["machine"].get("cuda"):
            found.append(content)
    return max(found, key=lambda c: (c["date"], c["time"]), default=None)


def counts() -> Content | None:
    """What `--check` counted last: versions, and parameters and multiply-adds by peer; None: never run."""
    return json.loads(COUNTS.read_text()) if COUNTS.exists() else None
