"""The result file: what is in it, where it lies, and how it is written."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.gpu_suite.session import PartResult
from benchmarks.gpu_suite.settings import Settings
from varsr_engine.atomic import atomic_writer

FORMAT = 1


def commit() -> str:
    """The checkout's commit as it may stand in a file's name: with `-changed` where files differ from it."""
    return machine.commit().replace("+", "-changed")


def gpu_folder(name: str) -> str:
    """A GPU's name as a folder's: "NVIDIA H100 80GB HBM3" becomes h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("nvidia", "")).strip("-") or "unknown"


class Report:
    """The results so far, in memory and as one JSON file and one Markdown file beside it."""

    def __init__(self, out: Path, settings: Settings, minutes: float, commit_name: str, command: str) -> None:
        self._out, self._begin = out, time.time()
        self._written: Path | None = None
        self.content: dict[str, Any] = {
            "suite": "gpu",
            "format": FORMAT,
            "dry_run": settings.dry_run,
            "finished": False,
            "commit": commit_name,
            "date": time.strftime("%Y-%m-%d"),
            "time": time.strftime("%H:%M:%S"),
            "command": command,
            "minutes": minutes,
            "settings": json.loads(settings.to_json()),
            "parts": {},
        }

    @property
    def machine(self) -> dict[str, Any]:
        items = self.content["parts"].get("machine", {}).get("items", {})
        facts: dict[str, Any] = items.get("facts", {})
        return facts

    @property
    def path(self) -> Path:
        """<out>/<gpu>/<date>-<commit>.json: of a dry run never beside a measurement."""
        folder = "dry-run" if self.content["dry_run"] else gpu_folder(self.machine.get("gpu", ""))
        return self._out / folder / f"{self.content['date']}-{self.content['commit']}.json"

    def update(self, results: Mapping[str, PartResult]) -> None:
        """Take the results over and write both files, each in one step."""
        from benchmarks.gpu_suite.tables import page

        self.content["parts"] = {name: result.to_dict() for name, result in results.items()}
        self.content["seconds"] = round(time.time() - self._begin, 1)
        path = self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            file.write((json.dumps(self.content, indent=1) + "\n").encode())
        with atomic_writer(path.with_suffix(".md")) as file:
            file.write(page(self.content).encode())
        if self._written is not None and self._written != path:  # written before the GPU's name was known
            self._written.unlink(missing_ok=True)
            self._written.with_suffix(".md").unlink(missing_ok=True)
        self._written = path
