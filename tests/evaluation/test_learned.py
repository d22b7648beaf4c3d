"""Learned metrics: pyiqa absent, there without weights, and there, as a stand-in that only has its interface."""

from __future__ import annotations

import importlib.machinery
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.evaluation.pictures import gray, scene
from varsr_engine.evaluation.learned import FID, LEARNED, NOT_INSTALLED, fid_of_folders, learned_suite, offline
from varsr_engine.evaluation.metrics import Sample

CPU = torch.device("cpu")


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches of torch and Hugging Face."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def install(monkeypatch: pytest.MonkeyPatch, create_metric: Callable[..., Any]) -> None:
    module = ModuleType("pyiqa")
    module.__spec__ = importlib.machinery.ModuleSpec("pyiqa", None)
    module.create_metric = create_metric  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyiqa", module)


def fill(caches: Path) -> None:
    for metric in (*LEARNED, FID):
        paths = [caches / "torch" / "hub" / file for file in metric.files]
        paths += [caches / "hub" / f"models--{m.replace('/', '--')}" / "snapshots" / "1" / "w" for m in metric.models]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()


def difference(name: str, device: torch.device) -> Callable[..., torch.Tensor]:
    """A metric of tensors in [0, 1]: the mean, or the mean difference."""
    assert device == CPU
    return lambda picture, truth=None: (picture - (0 if truth is None else truth)).abs().mean().reshape(1, 1)


def test_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    suite = learned_suite(CPU)
    assert suite.metrics == []
    assert suite.skipped == {metric.key: NOT_INSTALLED for metric in LEARNED}
    assert {"lpips", "dists", "musiq", "maniqa", "maniqa_pipal", "clipiqa"} == set(suite.skipped)
    assert fid_of_folders(CPU) == (None, NOT_INSTALLED)


def test_without_weights_nothing_is_made(monkeypatch: pytest.MonkeyPatch, caches: Path) -> None:
    install(monkeypatch, lambda *arguments, **settings: pytest.fail("it would download"))
    suite = learned_suite(CPU)
    assert suite.metrics == [] and not (caches / "torch").exists()
    assert "missing: " in suite.skipped["lpips"] and "LPIPS_v0.1_alex-df73285e.pth" in suite.skipped["lpips"]
    assert "alexnet" in suite.skipped["lpips"] and "timm/vit_base_patch8_224" in suite.skipped["maniqa"]
    assert "inception" in fid_of_folders(CPU)[1]


def test_with_weights(monkeypatch: pytest.MonkeyPatch, caches: Path) -> None:
    fill(caches)
    install(monkeypatch, difference)
    suite = learned_suite(CPU)
    assert [metric.key for metric in suite.metrics] == [metric.key for metric in LEARNED] and not suite.skipped
    scores, reasons = suite.measure(Sample(gray(51), gray(255)))
    assert scores["lpips"] == pytest.approx(0.8) and scores["musiq"] == pytest.approx(0.2) and not reasons
    scores, reasons = suite.measure(Sample(gray(51)))
    assert scores["lpips"] is None and reasons["lpips"] == "no ground truth"
    assert scores["clipiqa"] == pytest.approx(0.2)


def test_without_truth(monkeypatch: pytest.MonkeyPatch, caches: Path) -> None:
    fill(caches)
    install(monkeypatch, difference)
    suite = learned_suite(CPU, has_truth=False)
    assert suite.skipped == dict.fromkeys(("lpips", "dists"), "no ground truth in any pair")


def test_a_download_is_refused_and_stops_no_other_metric(monkeypatch: pytest.MonkeyPatch, caches: Path) -> None:
    fill(caches)

    def create_metric(name: str, device: torch.device) -> Any:
        if name == "dists":
            socket.create_connection(("weights.invalid", 443))
        return difference(name, device)

    install(monkeypatch, create_metric)
    suite = learned_suite(CPU)
    assert list(suite.skipped) == ["dists"] and "offline" in suite.skipped["dists"]
    assert len(suite.metrics) == len(LEARNED) - 1


def test_a_picture_that_a_metric_cannot_take(monkeypatch: pytest.MonkeyPatch, caches: Path) -> None:
    fill(caches)

    def create_metric(name: str, device: torch.device) -> Any:
        def too_small(*pictures: torch.Tensor) -> torch.Tensor:
            raise AssertionError("at least 224 pixels")

        return too_small if name.startswith("maniqa") else difference(name, device)

    install(monkeypatch, create_metric)
    scores, reasons = learned_suite(CPU).measure(Sample(gray(51), gray(255)))
    assert scores["maniqa"] is None and reasons["maniqa_pipal"].endswith("AssertionError: at least 224 pixels")
    assert scores["lpips"] is not None


def test_offline_ends_with_its_block() -> None:
    before = socket.getaddrinfo
    with offline(), pytest.raises(OSError, match="offline"):
        socket.getaddrinfo("localhost", 80)
    assert socket.getaddrinfo is before


def test_fid_is_of_folders(monkeypatch: pytest.MonkeyPatch, caches: Path, tmp_path: Path) -> None:
    fill(caches)
    install(monkeypatch, lambda name, device: lambda one, other, **options: float(len(one) - len(other)))
    fid, reason = fid_of_folders(CPU)
    assert fid is not None and reason == ""
    assert fid(tmp_path / "longer", tmp_path / "long") == 2


def test_pictures_are_batches_in_the_unit_range(monkeypatch: pytest.MonkeyPatch, caches: Path) -> None:
    fill(caches)
    seen: list[torch.Tensor] = []
    install(monkeypatch, lambda name, device: lambda picture, *truth: (seen.append(picture), torch.zeros(1))[1])
    learned_suite(CPU).measure(Sample(scene(20, 30), scene(20, 30)))
    assert all(x.shape == (1, 3, 20, 30) and x.dtype == torch.float32 and 0 <= x.min() <= x.max() <= 1 for x in seen)
