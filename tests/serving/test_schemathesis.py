"""Requests made from the OpenAPI document, right ones and wrong ones: every answer is one that it names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from varsr_engine.engine.engine import Engine


@pytest.mark.slow
def test_schemathesis(serving: Any, engine: Engine, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    with serving(engine, body_grace=2.0) as server:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
        # Bytes that the document calls an image are seldom one: what fits it may well be refused.
        options = ["--exclude-checks", "positive_data_acceptance", "--max-examples", "5", "--seed", "1"]
        options += ["--request-timeout", "60", "--no-color", "--warnings", "off", "--continue-on-failure"]
        done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "generated" in done.stdout
