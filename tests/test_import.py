"""Importing the package is cheap: no torch, and public names load on first use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import varsr_engine

PUBLIC = {
    "__version__",
    "Engine",
    "EngineConfig",
    "Generation",
    "ModelConfig",
    "UpscaleParams",
    "UpscaleResult",
    "VarsrError",
    "upscale",
    "use_backend",
}

SCRIPT = """
import json, sys
import varsr_engine
heavy = ("torch", "triton", "numpy", "PIL", "safetensors")
first = [m for m in heavy if m in sys.modules]
names = dir(varsr_engine)
varsr_engine.ModelConfig.varsr_d24(), varsr_engine.EngineConfig(), varsr_engine.UpscaleParams(), varsr_engine.VarsrError
print(json.dumps({"import": first, "settings": [m for m in heavy if m in sys.modules], "dir": names}))
"""


def test_import_loads_no_torch() -> None:
    """Neither the package nor its settings do: `varsr --help` stays instant."""
    run = [sys.executable, "-c", SCRIPT]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VARSR_", "COV_"))}
    done = subprocess.run(
        run, env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["import"] == seen["settings"] == []
    assert set(seen["dir"]) == PUBLIC


def test_dir_is_all_and_sorted() -> None:
    assert dir(varsr_engine) == sorted(varsr_engine.__all__)
    assert set(varsr_engine.__all__) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_names_load(name: str) -> None:
    value = getattr(varsr_engine, name)
    assert name == "__version__" or value.__name__ == name


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'varsr_engine' has no attribute 'Upscaler'"):
        varsr_engine.Upscaler  # noqa: B018
