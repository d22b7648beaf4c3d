"""Pairs that are made: the same every time, of the sizes asked for, in the layout that is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.pictures import save, scene
from varsr_engine.errors import InvalidParamsError, OutputError
from varsr_engine.evaluation import synthetic
from varsr_engine.evaluation.full_reference import psnr_y
from varsr_engine.evaluation.pairs import find_pairs
from varsr_engine.evaluation.pixels import read_pixels
from varsr_engine.evaluation.synthetic import DEGRADATIONS, degraded, make_pairs


@pytest.fixture(autouse=True)
def quick_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead leaves take a second each; the command's tests make real ones."""
    monkeypatch.setattr(synthetic, "dead_leaves", lambda side, seed: scene(side, side, seed))


def test_pairs_are_a_function_of_their_arguments(tmp_path: Path) -> None:
    for name, count, seed in (("two", 2, 3), ("one", 1, 3), ("other", 1, 4)):
        make_pairs(tmp_path / name, count, side=64, seed=seed)
    pairs = find_pairs(tmp_path / "two").pairs
    assert [pair.name for pair in pairs] == ["0001", "0002"]
    for pair in pairs:
        assert pair.truth is not None and read_pixels(pair.truth).shape == (64, 64, 3)
        assert read_pixels(pair.low).shape == (16, 16, 3)
    for role in ("lq", "gt"):
        first, second, same, other = (
            (tmp_path / path.format(role)).read_bytes()
            for path in ("two/{}/0001.png", "two/{}/0002.png", "one/{}/0001.png", "other/{}/0001.png")
        )
        assert first == same and len({first, second, other}) == 3


@pytest.mark.parametrize("preset", DEGRADATIONS)
def test_degradations(preset: str) -> None:
    truth = scene(64, 64)
    low = degraded(truth, preset, 0)  # type: ignore[arg-type]
    assert low.shape == (16, 16, 3) and low.dtype == np.uint8
    shrunk = truth.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3)).astype(np.uint8)
    assert 15 < psnr_y(low, shrunk) < 45
    assert np.array_equal(low, degraded(truth, preset, 0))  # type: ignore[arg-type]


def test_crops_of_photographs(tmp_path: Path) -> None:
    save(scene(80, 90), tmp_path / "photographs" / "a.png")
    make_pairs(tmp_path / "pairs", 3, side=64, photographs=tmp_path / "photographs")
    assert len(find_pairs(tmp_path / "pairs").pairs) == 3
    with pytest.raises(InvalidParamsError, match="at least 128x128"), pytest.warns(UserWarning, match="left out"):
        make_pairs(tmp_path / "larger", 1, side=128, photographs=tmp_path / "photographs")


def test_wrong_arguments(tmp_path: Path) -> None:
    for side in (60, 66):
        with pytest.raises(InvalidParamsError, match=f"multiple of 4 from 64 on, got {side}"):
            make_pairs(tmp_path, 1, side=side)
    with pytest.raises(InvalidParamsError, match="one of second_order, mild"):
        make_pairs(tmp_path, 1, preset="worst")  # type: ignore[arg-type]
    make_pairs(tmp_path, 1, side=64)
    with pytest.raises(OutputError, match="exists already"):
        make_pairs(tmp_path, 1, side=64)
    make_pairs(tmp_path, 1, side=64, overwrite=True)
