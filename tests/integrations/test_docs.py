"""docs/integrations.md: its Python snippets run, and what it says of hosts and versions is so."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations.conftest import EXAMPLES

ROOT = EXAMPLES.parent
TEXT = (ROOT / "docs" / "integrations.md").read_text()
SECTIONS = {part.split("\n", 1)[0]: part for part in TEXT.split("\n## ")[1:]}
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
SNIPPETS = {name: code for name, part in SECTIONS.items() for code in BLOCK.findall(part)}
HOSTS = {"diffusers": "diffusers", "Gradio": "gradio", "spandrel": "spandrel"}  # the modules that snippets need
# spandrel imports torchvision for two architectures of its own.
TORCHVISION = """
import sys, types
for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
    sys.modules[name] = types.ModuleType(name)
sys.modules[name].__dict__.update(InterpolationMode=None, rotate=None, normalize=None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", SNIPPETS)
def test_snippets_run(name: str, tmp_path: Path) -> None:
    host = HOSTS.get(name)
    if host is not None and importlib.util.find_spec(host) is None:
        pytest.skip(f"{host} is not installed")
    code = SNIPPETS[name]
    if host == "spandrel" and importlib.util.find_spec("torchvision") is None:
        code = TORCHVISION + code
    shutil.copy(EXAMPLES / "photo.jpg", tmp_path)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VARSR_")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_every_integration_has_a_section() -> None:
    table = re.findall(r"^\| \[(.+?)\]\(#(.+?)\) \|", TEXT, re.MULTILINE)
    assert [name for name, _ in table] == list(SECTIONS)
    assert all(anchor == name.lower().replace(" ", "-") for name, anchor in table)
    assert all("```python" in part or re.search(r"^    \S", part, re.MULTILINE) for part in SECTIONS.values())


def test_versions_are_those_that_were_run() -> None:
    """Of hosts that were run: the pins of `make test-integrations`. Of others: what the stubs were written after."""
    pins = (ROOT / "constraints-integrations.txt").read_text().splitlines()
    run = {tuple(line.split("==")) for line in pins if "==" in line and not line.startswith("pillow")}
    table = re.findall(r"^\| \[.+?\]\(.+?\) \| (\S+) (\d\S+) \| (.+) \|$", TEXT, re.MULTILINE)
    assert {(host, version) for host, version, how in table if "on the host" in how} == run
    for host, version, how in table:
        if (host, version) not in run:
            assert how == "**on a stub only**, written after its source"
            folder = {"vllm-omni": "vllm_omni_plugin", "sglang": "sglang_plugin"}[host]
            assert version in (EXAMPLES / folder / "README.md").read_text()
