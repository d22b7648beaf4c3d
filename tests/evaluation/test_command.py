"""varsr eval: from a command line to tables, files and an exit code."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.evaluation.pictures import noisy, save, scene
from tests.golden_cases import GOLDEN_FOLDER, load_case, weights
from varsr_engine.checkpoint import write_checkpoint
from varsr_engine.cli import app
from varsr_engine.evaluation.full_reference import psnr_rgb, psnr_y, ssim_y
from varsr_engine.evaluation.niqe import fit_niqe
from varsr_engine.evaluation.pixels import read_pixels

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a model of 128 x 128 pixels: about a tenth of a second an image."""
    config = load_case(GOLDEN_FOLDER, "tiny").config
    tensors = weights(config, 0)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return str(write_checkpoint(tmp_path_factory.mktemp("model"), config, shapes, tensors.__getitem__))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MODEL", "CONFIG", "DEVICE", "DTYPE", "BACKEND", "BATCH_SIZE"):
        monkeypatch.delenv(f"VARSR_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run() -> Run:
    """run(*arguments) of varsr eval -> result with exit_code, stdout, stderr."""
    return lambda *arguments: CliRunner().invoke(app, ["eval", *map(str, arguments)])


def pairs(folder: str = "pairs", *names: str, side: int = 64) -> Path:
    for seed, name in enumerate(names or ("a", "b")):
        truth = scene(side, side, seed)
        save(truth, Path(folder) / "gt" / f"{name}.png")
        save(
            truth.reshape(side // 4, 4, side // 4, 4, 3).mean(axis=(1, 3)).astype(np.uint8),
            Path(folder) / "lq" / f"{name}.png",
        )
    return Path(folder)


def the_json(result: Any) -> Any:
    assert result.stdout.count("\n") == 1, result.stdout
    return json.loads(result.stdout)


def test_the_shipped_model_on_two_pairs(run: Run) -> None:
    result = run(pairs(), "--save", "results", "--csv", "scores.csv", "--html", "report.html")
    assert result.exit_code == 0, result.stderr
    assert "PSNR-Y dB ↑" in result.stdout and "mean ± deviation" in result.stdout
    assert "Gaussian 11×11" in result.stdout  # the variants are named
    assert "[2/2] b  PSNR-Y dB" in result.stderr and "skipped: niqe: " in result.stderr
    with open("scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, name in zip(rows, "ab", strict=True):
        picture, truth = read_pixels(f"results/{name}.png"), read_pixels(f"pairs/gt/{name}.png")
        assert float(row["psnr_y"]) == psnr_y(picture, truth) > 15  # of the file's own samples
        assert float(row["ssim_y"]) == ssim_y(picture, truth)
        assert row["error"] == "" and "lpips: " in row["not_measured"]
    assert Path("report.html").read_text().count("data-open=") == 2 + 1  # and the script's selector


def test_json_and_parity_with_itself(run: Run, model: str) -> None:
    first = the_json(run(pairs(), "-n", model, "--save", "results", "--json", "--seed", 3))
    assert first["evaluation"]["seed"] == 3 and first["evaluation"]["model"] == Path(model).name
    assert first["summary"] == {"scored": 2, "failed": 0, "interrupted": False}
    assert [entry["output"] for entry in first["results"]] == ["results/a.png", "results/b.png"]
    assert first["skipped"]["fid"] and first["skipped"]["lpips"]
    again = the_json(run("pairs", "-n", model, "--reference", "results", "--json", "--seed", 3))
    assert [entry["scores"]["parity_psnr"] for entry in again["results"]] == ["inf", "inf"]
    assert again["results"][0]["scores"]["psnr_y"] == first["results"][0]["scores"]["psnr_y"]
    files = the_json(run("pairs", "--outputs", "results", "--json"))
    assert [e["scores"]["ssim_y"] for e in files["results"]] == [e["scores"]["ssim_y"] for e in first["results"]]
    assert "seam_score" in files["skipped"] and files["evaluation"]["outputs"] == "results"


def test_tiles_have_seams_and_large_pictures_all_metrics(run: Run, model: str) -> None:
    fit_niqe([scene(480, 480, seed) for seed in range(2)], sharpness=0)[0].save("niqe.npz")
    arguments = (pairs("pairs", "a", side=192), "-n", model, "--niqe-params", "niqe.npz", "--json", "--html", "page")
    (entry,) = the_json(run(*arguments))["results"]
    assert all(entry["scores"][key] is not None for key in ("psnr_y", "ssim_y", "ms_ssim_y", "niqe", "seam_score"))
    assert entry["not_measured"] == {} and Path("page/images/0001-result.png").is_file()


def test_results_in_files(run: Run) -> None:
    truths = {name: read_pixels(pairs() / "gt" / f"{name}.png") for name in "ab"}
    for name, truth in truths.items():
        save(noisy(truth, 5), Path("outputs") / f"{name}_x4.png")
        save(truth, Path("others") / f"{name}.png")
    report = the_json(run("pairs", "--outputs", "outputs", "--reference", "others", "--json"))
    for entry in report["results"]:
        expected = psnr_rgb(read_pixels(f"outputs/{entry['name']}_x4.png"), truths[entry["name"]])
        assert entry["scores"]["parity_psnr"] == expected
    mean = report["means"]["pairs"]["psnr_y"]
    assert mean["count"] == 2 and mean["least"] <= mean["mean"] <= mean["most"] and mean["deviation"] >= 0


def test_pictures_that_cannot_be_scored_are_rows_with_a_reason(run: Run) -> None:
    truth = read_pixels(pairs("pairs", "broken", "fine", "larger", "missing") / "gt" / "fine.png")
    save(truth, Path("outputs/fine.png"))
    save(scene(60, 64), Path("outputs/larger.png"))
    Path("outputs/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    result = run("pairs", "--outputs", "outputs", "--json", "--csv", "s.csv", "--html", "r.html")
    assert result.exit_code == 1
    report = the_json(result)
    reasons = {entry["name"]: entry.get("error", {}).get("message") for entry in report["results"]}
    assert reasons["fine"] is None and report["summary"] == {"scored": 1, "failed": 3, "interrupted": False}
    assert "corrupt" in reasons["broken"] and "64x60 pixels, the ground truth 64x64" in reasons["larger"]
    assert reasons["missing"] == "no result of the name 'missing' in --outputs"
    assert "failed: larger" in result.stderr and "Traceback" not in result.stderr
    assert "corrupt" in Path("s.csv").read_text() and "corrupt" in Path("r.html").read_text()


def test_a_broken_input_stops_no_other(run: Run, model: str) -> None:
    (pairs() / "lq" / "a.png").write_bytes(b"nothing")
    result = run("pairs", "-n", model, "--json", "-b", 2)
    assert result.exit_code == 1
    entries = the_json(result)["results"]
    assert entries[0]["error"]["code"] == "unsupported_format" and entries[1]["scores"]["psnr_y"] > 5


def test_a_wrong_scale_is_said(run: Run, model: str) -> None:
    result = run(pairs(), "-n", model, "--scale", 2)
    assert result.exit_code == 1 and "choose --scale accordingly" in result.stderr


def test_without_truth_and_with_unmatched_files(run: Run, model: str) -> None:
    pairs("sets/paired")
    save(scene(16, 16), Path("sets/paired/lq/c.png"))
    save(scene(16, 16), Path("sets/flat/d.png"))
    result = run("sets", "-n", model, "--json", "--save", "out")
    assert result.exit_code == 0, result.stderr
    report = the_json(result)
    assert [(e["set"], e["name"]) for e in report["results"]] == [("flat", "d"), ("paired", "a"), ("paired", "b")]
    assert report["results"][0]["not_measured"]["psnr_y"] == "no ground truth"
    assert "c.png' has no ground truth" in report["warnings"][0] and "c.png" in result.stderr
    assert Path("out/flat/d.png").is_file() and Path("out/paired/a.png").is_file()
    assert set(report["means"]) == {"flat", "paired", "all"}


def test_synthetic_pairs(run: Run, model: str) -> None:
    arguments = ("--synthetic", 1, "--side", 64, "--degradation", "mild", "-n", model, "--json")
    kept = the_json(run(*arguments, "--make-pairs", "made"))
    assert sorted(p.name for p in Path("made/lq").iterdir()) == ["0001.png"]
    again = the_json(run("made", "-n", model, "--json"))
    gone = the_json(run(*arguments))
    for other in (again, gone):
        assert [e["scores"] for e in other["results"]] == [e["scores"] for e in kept["results"]]
    assert kept["evaluation"]["what"] == "synthetic pairs: 1 of 64×64 pixels, mild"


def test_mistakes_are_found_before_anything_runs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("varsr_engine.commands.evaluate.load_engine", lambda *_: pytest.fail("it ran"))
    pairs()
    save(scene(64, 64), Path("x/a.png"))
    for arguments, code, message in [
        (("--seed", 1), 2, "either the folder PAIRS or --synthetic"),
        (("pairs", "--synthetic", 1), 2, "either the folder PAIRS or --synthetic"),
        (("pairs", "--make-pairs", "x"), 2, "are for --synthetic"),
        (("pairs", "--outputs", "x", "--save", "y"), 2, "with --outputs it does not run"),
        (("absent",), 2, "is not a folder"),
        (("pairs", "--reference", "absent"), 2, "reference: 'absent' is not a folder"),
        (("pairs", "--outputs", "pairs/gt", "--niqe-params", "absent.npz"), 2, "must be an .npz file"),
        (("pairs", "--save", "pairs/gt", "--overwrite"), 2, "is an input and would be written over"),
        (("pairs", "--save", "x", "--reference", "x", "--overwrite"), 2, "is an input and would be written over"),
        (("pairs", "--save", "pairs/lq"), 2, "is an input and would be written over"),
    ]:
        result = run(*arguments)
        assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
    Path("scores.csv").touch()
    result = run("pairs", "--csv", "scores.csv")
    assert result.exit_code == 1 and "exists already" in result.stderr


def test_ctrl_c_keeps_what_is_scored(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_pixels
    truth = pairs("pairs", "a", "b", "c") / "gt"

    def interrupted(path: Any, *limits: Any) -> Any:
        if Path(path) == truth / "c.png":
            raise KeyboardInterrupt
        return read(path, *limits)

    monkeypatch.setattr("varsr_engine.commands.evaluate.read_pixels", interrupted)
    result = run("pairs", "--outputs", "pairs/gt", "--json", "--csv", "s.csv")
    assert result.exit_code == 130
    assert the_json(result)["summary"] == {"scored": 2, "failed": 0, "interrupted": True}
    assert Path("s.csv").read_text().count("pairs/lq/") == 2


def test_learned_metrics_through_a_stand_in(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """FID gets the pictures of each set in two folders; a metric of single pictures gets its column."""
    means = lambda folder: np.mean([read_pixels(path).mean() for path in sorted(folder.iterdir())])  # noqa: E731
    fid = lambda results, truths: float(means(results) - means(truths))  # noqa: E731
    monkeypatch.setattr("varsr_engine.commands.evaluate.fid_of_folders", lambda device, has_truth: (fid, ""))
    pairs("sets/one")
    pairs("sets/two", "c")
    for name in ("one/a", "one/b", "two/c"):
        truth = read_pixels(f"sets/{name.replace('/', '/gt/')}.png")
        save((truth // 2).astype(np.uint8), Path("outputs") / f"{name}.png")
    report = the_json(run("sets", "--outputs", "outputs", "--json", "--html", "r.html"))
    assert report["sets"]["one"]["fid"] < -20 and list(report["sets"]) == ["one"]
    assert report["skipped"]["fid of two"] == "a set needs at least two pictures"
    assert report["metrics"][-1]["key"] == "fid" and "FID ↓" in Path("r.html").read_text()
    tables = run("sets", "--outputs", "outputs")
    assert "one: FID ↓ -" in tables.stdout
