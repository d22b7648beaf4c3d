"""Engines on golden weights, written once a session as ordinary checkpoint folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.golden_cases import GOLDEN_FOLDER, GoldenCase, load_case
from varsr_engine.checkpoint import write_checkpoint
from varsr_engine.engine.engine import Engine

Loaded = tuple[GoldenCase, Engine]


def write_case(case: GoldenCase, folder: Path) -> Path:
    weights = case.weights()
    return write_checkpoint(folder, case.config, {n: tuple(t.shape) for n, t in weights.items()}, weights.__getitem__)


@pytest.fixture(scope="session")
def load_engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Loaded]:
    """load_engine(name, folder=tests/golden, backend="auto"): the case and an engine with its weights, cached."""
    loaded: dict[tuple[Path, str, str], Loaded] = {}

    def load(name: str, folder: Path = GOLDEN_FOLDER, backend: str = "auto") -> Loaded:
        key = folder, name, backend
        if key not in loaded:
            case = load_case(folder, name)
            model = write_case(case, tmp_path_factory.mktemp("models") / name)
            loaded[key] = case, Engine.from_pretrained(model, device="cpu", backend=backend)
        return loaded[key]

    return load
