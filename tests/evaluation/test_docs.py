"""docs/evaluation.md: its commands run, and it names every metric as it is."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.pictures import scene
from varsr_engine.evaluation.full_reference import MS_SSIM_LEAST_SIDE, SIGMA, WINDOW
from varsr_engine.evaluation.learned import FID, LEARNED
from varsr_engine.evaluation.metrics import offline_suite
from varsr_engine.evaluation.niqe import NiqeParams, fit_niqe
from varsr_engine.evaluation.pairs import LOW_FOLDERS, TRUTH_FOLDERS
from varsr_engine.evaluation.scene_statistics import BLOCK

TEXT = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
TABLE = " ".join(re.findall(r"^\| ([^|`]+) \|", TEXT, re.MULTILINE))


def params() -> NiqeParams:
    return fit_niqe([scene(480, 480, seed) for seed in range(2)], sharpness=0)[0]


def test_every_metric_is_in_the_table() -> None:
    suite = offline_suite(niqe_params=params(), has_reference=True)
    headings = [metric.heading.removesuffix(" dB") for metric in (*suite.metrics, *LEARNED, FID)]
    assert all(re.search(rf"(^|[ ,]){heading}($|[ ,])", TABLE) for heading in headings), TABLE


def test_its_sizes_are_those_of_the_code() -> None:
    assert f"at least {MS_SSIM_LEAST_SIDE} pixels a side" in TEXT
    assert f"Gaussian {WINDOW}×{WINDOW} of σ {SIGMA}" in TEXT and f"blocks of {BLOCK}×{BLOCK}" in TEXT
    assert all(name in TEXT.lower() for name in (*LOW_FOLDERS, *TRUTH_FOLDERS) if not name.startswith("test_h"))


@pytest.mark.slow
def test_the_commands_run(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VARSR_")}
    for line in snippet.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "varsr"
        done = subprocess.run(
            [sys.executable, "-m", "varsr_engine", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert "mean ± deviation" in done.stdout
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"pairs", "results", "scores.csv", "report.html"}
