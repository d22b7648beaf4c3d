"""`varsr train`: both stages to a model that `varsr upscale` takes, and its errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from tests.training.conftest import MODEL
from varsr_engine.cli import app

CONFIG = """
[model]
{model}
[data]
pool_size = 1
pool_side = 64
workers = 0
[optimizer]
steps = 2
batch_size = 2
autocast = "none"
"""


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(CONFIG.format(model="\n".join(f"{key} = {value}" for key, value in MODEL.items())))
    return path


def test_from_config_to_picture(config: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run("train", "autoencoder", "-c", config, "-o", first, "--quiet") == (0, "")
    code, output = run(
        *("train", "transformer", "-c", config, "-o", second, "--autoencoder", first, "--name", "small"),
        *("--licence", "CC0-1.0"),
    )
    assert code == 0 and "model.safetensors" in output
    with safe_open(second / "model.safetensors", framework="pt") as file:
        about = file.metadata()
    assert about["name"] == "small" and about["licence"] == "CC0-1.0" and about["steps"] == "2"
    photo = tmp_path / "photo.png"
    Image.new("RGB", (8, 8), "teal").save(photo)
    code, output = run("upscale", photo, "-o", tmp_path / "x4.png", "--model", second / "model.safetensors")
    assert code == 0, output
    with Image.open(tmp_path / "x4.png") as picture:
        assert picture.size == (32, 32)


def test_resume_goes_on(config: Path, tmp_path: Path) -> None:
    arguments = ("train", "autoencoder", "-c", config, "-o", tmp_path / "run", "--quiet")
    assert run(*arguments, "--steps", 1) == (0, "")
    code, output = run(*arguments)
    assert code != 0 and "--resume" in output
    assert run(*arguments, "--resume") == (0, "")
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 2


def test_a_folder_of_images(config: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.effect_noise((80, 70), 40).convert("RGB").save(photos / "a.png")
    assert run("train", "autoencoder", "-c", config, "-o", tmp_path / "run", "--data", photos, "-q") == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tokenizer", "-c", "mini-autoencoder"), "autoencoder or transformer"),
        (("transformer", "-c", "mini-transformer"), "--autoencoder"),
        (("autoencoder", "-c", "absent"), "mini-autoencoder"),
        (("autoencoder", "-c", "mini-autoencoder", "--data", "absent"), "is not a folder"),
    ],
)
def test_errors(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    code, output = run("train", *arguments, "-o", tmp_path / "run")
    assert code != 0 and message in output


def test_start_from_another_run(config: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run("train", "autoencoder", "-c", config, "-o", first, "-q") == (0, "")
    assert run("train", "autoencoder", "-c", config, "-o", second, "--init", first, "-q") == (0, "")
    code, output = run("train", "autoencoder", "-c", "mini-autoencoder", "-o", tmp_path / "third", "--init", first)
    assert code != 0 and "do not fit this config" in output
