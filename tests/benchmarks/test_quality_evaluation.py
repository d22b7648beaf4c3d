"""The evaluation: crops, determinism, rows and means, reports; on small made-up photographs."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import eval_quality
from benchmarks.quality.evaluation import (
    Case,
    Row,
    classical_upscalers,
    degraded,
    engine_upscaler,
    evaluate,
    means,
)
from benchmarks.quality.metrics import METRICS, Pixels
from benchmarks.quality.photographs import (
    BUNDLED,
    Photograph,
    bundled_photographs,
    central_crop,
    folder_photographs,
)
from benchmarks.quality.report import markdown, strip, table, verdicts
from tests.golden_cases import GOLDEN_FOLDER, load_case
from varsr_engine.checkpoint import TensorCheckpoint
from varsr_engine.engine.engine import Engine


def photograph(name: str = "waves", side: int = 64) -> Photograph:
    y, x = np.mgrid[:side, :side] / 10
    waves = np.stack([np.sin(x + y), np.cos(x - y), np.sin(x * y / 4)], axis=-1) * 90 + 128
    return Photograph(name, waves.astype(np.uint8))


def row(degradation: str, upscaler: str, photo: str = "a", **scores: float) -> Row:
    return Row(photo, degradation, upscaler, dict.fromkeys(METRICS, 1.0) | scores, 0.5)


def test_degraded_is_fixed_and_depends_on_photograph_degradation_and_seed() -> None:
    photo = photograph()
    low = degraded(photo, "hard")
    assert low.shape == (16, 16, 3) and low.dtype == np.uint8
    assert np.array_equal(low, degraded(photo, "hard"))
    others = [degraded(photo, "hard", seed=1), degraded(photo, "mild"), degraded(photograph("other"), "hard")]
    assert not any(np.array_equal(low, other) for other in others)
    with pytest.raises(ValueError, match="one of mild, hard, second_order, got 'soft'"):
        degraded(photo, "soft")


def test_evaluate_gives_a_row_each_and_hands_the_pictures_on() -> None:
    cases: list[Case] = []
    perfect = {p.name: p.pixels for p in (photograph("a"), photograph("b"))}
    seen: list[Pixels] = []

    def oracle(low: Pixels) -> Pixels:
        seen.append(low)
        return perfect["a" if len(seen) % 2 else "b"]

    upscalers = classical_upscalers() | {"oracle": oracle}
    rows = evaluate(upscalers, [photograph("a"), photograph("b")], on_case=cases.append)
    assert len(rows) == 3 * 2 * 3 and len(cases) == 3 * 2
    assert [r.upscaler for r in rows[:3]] == ["bicubic", "lanczos", "oracle"]
    assert all(r.scores["ssim_y"] == pytest.approx(1) for r in rows if r.upscaler == "oracle")
    by_name = {(r.photo, r.degradation, r.upscaler): r.scores["psnr_y"] for r in rows}
    assert by_name["a", "mild", "bicubic"] > by_name["a", "hard", "bicubic"]
    assert np.array_equal(cases[0].low, seen[0]) and set(cases[0].outputs) == set(upscalers)


def test_means_and_verdicts() -> None:
    rows = [
        row("mild", "bicubic", "a", psnr_y=20, energy=0.1, gmsd=0.2),
        row("mild", "bicubic", "b", psnr_y=30, energy=0.3, gmsd=0.2),
        row("mild", "ours", "a", psnr_y=24, energy=2.0, gmsd=0.1),
        row("mild", "ours", "b", psnr_y=28, energy=2.0, gmsd=0.2),
    ]
    bicubic, ours = means(rows)
    assert (bicubic.photo, bicubic.scores["psnr_y"], ours.scores["psnr_y"]) == ("mean", 25, 26)
    assert verdicts(rows, "ours") == {
        "mild": {"psnr_y_gain": 1, "ssim_y_gain": 0, "gmsd_better": True, "energy_nearer_1": True}
    }
    assert not verdicts(rows, "ours", baseline="ours")["mild"]["gmsd_better"]


def test_report_and_strip() -> None:
    cases: list[Case] = []
    upscalers = classical_upscalers()
    upscalers["ours"] = upscalers["bicubic"]
    rows = evaluate(upscalers, [photograph()], ["mild"], on_case=cases.append)
    assert len(table(rows).splitlines()) == 2 + 3
    text = markdown("Quality", "facts", rows, ["ours"])
    assert "## mild" in text and "ours against bicubic: PSNR-Y +0.00 dB" in text and "GMSD better: no" in text
    image = strip(cases[0])
    assert image.size == (64 * 4, 64 + 14)  # truth, input, bicubic, ours


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.quality.photographs.BUNDLED", {"cat": ("no_such_package_here", "cat.png")})
    with pytest.raises(ModuleNotFoundError, match=r"no_such_package_here is missing: pip install .*\[eval\]"):
        bundled_photographs()


def test_central_crop_and_folder(tmp_path: Path) -> None:
    pixels = np.arange(20 * 31 * 3, dtype=np.uint8).reshape(20, 31, 3)
    assert np.array_equal(central_crop(Image.fromarray(pixels), 16), pixels[2:18, 7:23])
    with pytest.raises(ValueError, match="at least 256×256 pixels, got 31×20"):
        central_crop(Image.fromarray(pixels))
    with pytest.raises(FileNotFoundError, match="no PNG"):
        folder_photographs(tmp_path)
    Image.fromarray(pixels).save(tmp_path / "b.png")
    Image.fromarray(pixels[::-1]).convert("L").save(tmp_path / "a.png")
    photos = folder_photographs(tmp_path, 16)
    assert [p.name for p in photos] == ["a", "b"] and photos[0].pixels.shape == (16, 16, 3)


@pytest.mark.skipif(not all(map(find_spec, ("skimage", "sklearn"))), reason="needs the extra [eval]")
def test_bundled_photographs() -> None:
    photos = bundled_photographs()
    assert [p.name for p in photos] == list(BUNDLED)
    assert all(p.pixels.shape == (256, 256, 3) for p in photos)


def tiny_engine() -> Engine:
    case = load_case(GOLDEN_FOLDER, "tiny")
    return Engine(TensorCheckpoint(case.weights(), case.config, "tiny"), model_id="tiny")


def test_an_engine_is_an_upscaler() -> None:
    upscale = engine_upscaler(tiny_engine(), seed=0, refiner="off")
    low = degraded(photograph(), "mild")
    assert upscale(low).shape == (64, 64, 3) and upscale(low).dtype == np.uint8


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out, strips = (tmp_path / name for name in ("photos", "out", "strips"))
    photos.mkdir()
    Image.fromarray(photograph().pixels).save(photos / "waves.png")
    options = ["--model", "tiny", "--photos", photos, "--crop", "32", "--out", out, "--strips", strips]
    options += ["--degradations", "mild", "--ablate", "--cfg", "0", "2"]
    monkeypatch.setattr(sys, "argv", ["eval_quality", *map(str, options)])
    monkeypatch.setattr(Engine, "from_pretrained", lambda *_, **__: tiny_engine())
    monkeypatch.setattr(eval_quality, "ABLATED_TEMPERATURES", (0.5,))
    eval_quality.main()
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = list(last["verdicts"])
    grid = [f"cfg {c} refiner {r}" for c in (0, 2) for r in ("off", "on")]
    assert [name.split(" t=")[0] for name in names] == ["defaults", "fidelity 0", *grid]
    (result,) = out.glob("tiny-ablation-*.json")
    saved = json.loads(result.read_text())
    assert len(saved["rows"]) == 2 + 6 and saved["runs"]["cfg 2 refiner off"]["refiner"] == "off"
    assert result.with_suffix(".md").read_text().startswith("# Quality of tiny, ×4")
    assert [p.name for p in strips.glob("tiny/*.png")] == ["waves-mild.png"]
