"""A tiny model on disk, pictures, and a way to run the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.golden_cases import GOLDEN_FOLDER, load_case, weights
from varsr_engine.checkpoint import save_model, write_checkpoint
from varsr_engine.cli import app

Run = Callable[..., Any]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a model of 128 x 128 pixels: about a tenth of a second an image."""
    config = load_case(GOLDEN_FOLDER, "tiny").config
    tensors = weights(config, 0)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return str(write_checkpoint(tmp_path_factory.mktemp("model"), config, shapes, tensors.__getitem__))


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """The model is so small that threads would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run() -> Run:
    """run(*arguments) -> result with exit_code, stdout, stderr."""

    def invoke(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(a) for a in arguments])

    return invoke


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an empty folder, without settings from the environment."""
    for name in ("MODEL", "CONFIG", "DEVICE", "DTYPE", "BACKEND", "BATCH_SIZE"):
        monkeypatch.delenv(f"VARSR_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in for the model that comes with the package: the tiny one, in the package's form."""
    config = load_case(GOLDEN_FOLDER, "tiny").config
    assets = tmp_path_factory.mktemp("assets")
    about = {"name": "stand-in", "licence": "Apache-2.0"}
    path = save_model(assets / "varsr-mini.safetensors", config, weights(config, 0), metadata=about)
    monkeypatch.setattr("varsr_engine.packaged.ASSETS", assets)
    return path


@pytest.fixture
def picture() -> Callable[..., Path]:
    """picture(path) writes a small random picture and returns its path."""

    def write(path: str | Path, size: tuple[int, int] = (12, 8), mode: str = "RGB", **options: Any) -> Path:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
        Image.fromarray(pixels, mode).save(path, **options)
        return path

    return write


def the_json(result: Any) -> Any:
    """stdout, which must be one JSON object and nothing else."""
    assert result.stdout.count("\n") == 1, result.stdout
    return json.loads(result.stdout)


def files_in(folder: str | Path) -> list[str]:
    """Every file below a folder, hidden ones included, as sorted relative paths."""
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file())
