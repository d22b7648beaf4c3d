"""Asks pip what each extra would install beside the environment's torch, and fails if one would change torch.

    python tests/integrations/check_extras.py

With the pins of constraints.txt, and without any. Needs a package index, installs nothing.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
KEPT = ("torch", "triton", "torchvision")  # the last: none of ours may bring it
RELAXED = ("pillow",)  # Gradio takes none newer than 12


def requirements(extra: str) -> list[str]:
    """Those of an extra, and of the extras that it names."""
    own: list[str] = []
    for line in EXTRAS[extra]:
        if inner := re.fullmatch(r"varsr-engine\[(.+)\]", line):
            own += [more for name in inner[1].split(",") for more in requirements(name)]
        else:
            own.append(line)
    return own


def would_install(lines: list[str], constraints: Path | None) -> dict[str, str]:
    """Names and versions that pip would install into this environment."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--dry-run", "--quiet"]
    pins = [] if constraints is None else ["-c", str(constraints)]
    done = subprocess.run([*pip, "--report", "-", *pins, *lines], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    found = (entry["metadata"] for entry in json.loads(done.stdout)["install"])
    return {entry["name"].lower(): entry["version"] for entry in found}


def main() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    bad = []
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(line for line in pins if not line.startswith(RELAXED)))
        cases = [(extra, given) for extra in EXTRAS for given in (constraints, None)]
        with ThreadPoolExecutor(4) as pool:  # pip mostly waits for the index
            answers = pool.map(
                lambda case: would_install([*PROJECT["dependencies"], *requirements(case[0])], case[1]), cases
            )
            for (extra, given), found in zip(cases, answers, strict=True):
                changed = {name: found[name] for name in KEPT if name in found}
                how = "with the pins" if given else "without pins"
                print(f"{extra}, {how}: {len(found)} packages, torch {changed.get('torch', 'kept')}", flush=True)
                bad += [f"{extra}, {how}: {changed}"] if changed else []
    if bad:
        sys.exit(f"torch {version('torch')} would change:\n" + "\n".join(bad))


if __name__ == "__main__":
    main()
