"""varsr upscale: what is written where, what is said, and the exit code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.conftest import files_in, the_json
from varsr_engine.commands import upscale as upscale_command
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.params import MAX_SEED

SILENT = "Traceback"


def size_of(path: str | Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


# --- what is written where -------------------------------------------------------------------------------


def test_single_file(run, model, picture) -> None:
    source = picture("in/a.png")
    before = source.read_bytes()
    result = run("upscale", source, "-o", "out/b.png", "-n", model)
    assert result.exit_code == 0, result.stderr
    assert size_of("out/b.png") == (48, 32)
    assert source.read_bytes() == before
    assert result.stdout == ""
    assert "[1/1] in/a.png -> out/b.png  48x32" in result.stderr


@pytest.mark.parametrize(
    ("options", "name", "size"),
    [
        ((), "a_x4.png", (48, 32)),
        (("-s", "2.5"), "a_x2.5.png", (30, 20)),
        (("--target-size", "33x21"), "a_33x21.png", (33, 21)),
        (("--longest-side", "24"), "a_24px.png", (24, 16)),
        (("--suffix", "_big", "--ext", "webp"), "a_big.webp", (48, 32)),
    ],
)
def test_beside_the_source(run, model, picture, options, name, size) -> None:
    picture("a.png")
    assert run("upscale", "a.png", "-n", model, *options).exit_code == 0
    assert files_in(".") == sorted(["a.png", name])
    assert size_of(name) == size


def test_model_from_the_environment(run, model, picture, monkeypatch) -> None:
    monkeypatch.setenv("VARSR_MODEL", model)
    assert run("upscale", picture("a.png")).exit_code == 0


def test_the_packaged_model_is_the_default(run, model, packaged, picture, monkeypatch) -> None:
    picture("a.png")
    for options in ((), ("-n", "varsr-mini")):
        (entry,) = the_json(run("upscale", "a.png", "--json", "--overwrite", *options))["results"]
        assert entry["model"] == "varsr-mini"
    monkeypatch.setenv("VARSR_MODEL", model)
    (entry,) = the_json(run("upscale", "a.png", "--json", "--overwrite"))["results"]
    assert entry["model"] == Path(model).name
    (entry,) = the_json(run("upscale", "a.png", "--json", "--overwrite", "-n", "varsr-mini"))["results"]
    assert entry["model"] == "varsr-mini"


def test_tiles(run, model, picture) -> None:
    picture("a.png", size=(40, 33))
    (entry,) = the_json(run("upscale", "a.png", "-n", model, "--json"))["results"]
    assert entry["tiles"] == 4 and entry["size"] == [160, 132] and entry["seam_score"] > 0
    options = ("--tile-overlap", "0", "--refiner-temperature", "0", "--overwrite", "-n", model, "-b", 2)
    result = run("upscale", "a.png", *options)
    assert result.exit_code == 0 and "160x132  4 tiles" in result.stderr
    (entry,) = the_json(run("upscale", "a.png", "--tile", "off", "--overwrite", "-n", model, "--json"))["results"]
    assert entry["tiles"] == 1 and entry["seam_score"] is None and entry["size"] == [160, 132]


def test_compare(run, model, picture) -> None:
    picture("a.png", size=(12, 8), mode="RGBA")
    result = run("upscale", "a.png", "-o", "b.webp", "-n", model, "--compare")
    assert result.exit_code == 0 and "comparison: b_compare.png" in result.stderr
    width, height = size_of("b_compare.png")
    assert 3 * 48 < width < 3 * 48 + 24 and 32 < height < 32 + 24
    result = run("upscale", "a.png", "-o", "b.tif", "-n", model, "--compare")
    assert result.exit_code == 1 and "'b_compare.png' exists already" in result.stderr
    assert files_in(".") == ["a.png", "b.webp", "b_compare.png"]
    arguments = ("upscale", "a.png", "-o", "b.webp", "-n", model, "--compare", "--overwrite", "--json")
    assert the_json(run(*arguments))["results"][0]["comparison"] == "b_compare.png"
    picture("c_compare.png")
    result = run("upscale", "a.png", "c_compare.png", "-o", ".", "--suffix", "", "--overwrite", "-n", model)
    assert result.exit_code == 2
    result = run("upscale", "c_compare.png", "-o", "c.png", "-n", model, "--compare", "--overwrite")
    assert result.exit_code == 2 and "'c_compare.png' is an input and would be written over" in result.stderr


def test_recursive_folder_is_mirrored(run, model, picture) -> None:
    for name in ("1.png", "sub/2.jpg", "sub/deep/3.webp"):
        picture(Path("in", name))
    Path("in/notes.txt").write_text("not an image")
    assert run("upscale", "in", "-o", "out", "-n", model).exit_code == 0
    assert files_in("out") == ["1.png"]
    assert run("upscale", "in", "-o", "all", "-r", "-n", model, "-b", 2).exit_code == 0
    assert files_in("all") == ["1.png", "sub/2.jpg", "sub/deep/3.webp"]


def test_pattern(run, model, picture) -> None:
    picture("in/x/1.png"), picture("in/y/2.png"), picture("in/y/3.jpg")
    assert run("upscale", "in/**/*.png", "-o", "out", "-n", model).exit_code == 0
    assert files_in("out") == ["x/1.png", "y/2.png"]


def test_inputs_as_options(run, model, picture) -> None:
    picture("a.png"), picture("b.png"), picture("c.png")
    assert run("upscale", "a.png", "-i", "b.png", "--img_dir", "c.png", "-o", "out", "-n", model).exit_code == 0
    assert files_in("out") == ["a.png", "b.png", "c.png"]


def test_folder_needs_an_output(run, model, picture) -> None:
    picture("in/a.png")
    result = run("upscale", "in", "-n", model)
    assert result.exit_code == 2
    assert "the folder 'in' needs an output folder" in result.stderr


def test_transparency_turns_jpeg_into_png_unless_asked_for(run, model, picture) -> None:
    picture("a.jpg", mode="RGBA", format="PNG")
    assert run("upscale", "a.jpg", "-o", "auto/", "-n", model).exit_code == 0
    assert files_in("auto") == ["a.png"]
    result = run("upscale", "a.jpg", "-o", "asked", "--ext", "jpg", "-n", model)
    assert files_in("asked") == ["a.jpg"]
    assert result.stderr.count("warning: JPEG has no alpha channel") == 1
    picture("a.png")
    result = run("upscale", "a.jpg", "a.png", "-o", "both", "-n", model)
    assert result.exit_code == 1
    assert "needs a PNG, but 'both/a.png' is another image's file" in result.stderr


def test_num_samples(run, model, picture) -> None:
    picture("a.png"), picture("b.png")
    arguments = ("upscale", "a.png", "b.png", "-o", "out", "-n", model, "--num-samples", 2, "--seed", 7)
    report = the_json(run(*arguments, "--json"))
    assert files_in("out") == ["a_seed7.png", "a_seed8.png", "b_seed7.png", "b_seed8.png"]
    assert [entry["seed"] for entry in report["results"]] == [7, 8, 7, 8]
    alone = run("upscale", "a.png", "-o", "alone.png", "-n", model, "--seed", 8)
    assert alone.exit_code == 0
    with Image.open("alone.png") as a, Image.open("out/a_seed8.png") as b:
        assert max(hi for _, hi in _differences(a, b)) <= 1
    os.unlink("out/a_seed8.png")
    report = the_json(run(*arguments, "--json", "--skip-existing"))
    assert [entry["output"] for entry in report["results"]] == ["out/a_seed8.png"]
    assert report["summary"]["skipped"] == 3


def _differences(a: Image.Image, b: Image.Image) -> Any:
    from PIL import ImageChops

    return ImageChops.difference(a, b).getextrema()


def test_random_seed_is_reported(run, model, picture) -> None:
    picture("a.png")
    arguments = ("upscale", "a.png", "-n", model, "--seed", "random", "--json", "--overwrite")
    reports = [the_json(run(*arguments)) for _ in range(2)]
    seeds = {report["results"][0]["seed"] for report in reports}
    assert len(seeds) == 2 and all(0 <= seed <= MAX_SEED for seed in seeds)


# --- files that are there already ------------------------------------------------------------------------


def test_existing_output_is_refused_skipped_or_replaced(run, model, picture) -> None:
    picture("in/a.png"), picture("in/b.png")
    picture("out/a.png", size=(1, 1))
    result = run("upscale", "in", "-o", "out", "-n", model)
    assert result.exit_code == 1
    assert "'out/a.png' exists already; replace with --overwrite, or keep with --skip-existing" in result.stderr
    assert files_in("out") == ["a.png"]
    result = run("upscale", "in", "-o", "out", "-n", model, "--skip-existing")
    assert result.exit_code == 0 and "1 written, 1 skipped" in result.stderr
    assert size_of("out/a.png") == (1, 1) and size_of("out/b.png") == (48, 32)
    assert run("upscale", "in", "-o", "out", "-n", model, "--overwrite").exit_code == 0
    assert size_of("out/a.png") == (48, 32)
    assert run("upscale", "in", "-o", "out", "-n", model, "--overwrite", "--skip-existing").exit_code == 2


def test_nothing_left_to_do_loads_no_model(run, picture) -> None:
    picture("a.png"), picture("a_x4.png")
    result = run("upscale", "a.png", "--skip-existing", "-n", "no/model")
    assert result.exit_code == 0 and "1 skipped" in result.stderr


def test_output_collisions(run, model, picture) -> None:
    picture("x/a.png"), picture("y/a.png"), picture("x/b.jpg"), picture("x/b.png")
    result = run("upscale", "x/a.png", "y/a.png", "-o", "out", "-n", model)
    assert result.exit_code == 2 and "would both be written to" in result.stderr
    assert run("upscale", "x/b.jpg", "x/b.png", "-o", "out", "--ext", "png", "-n", model).exit_code == 2
    result = run("upscale", "x/a.png", "-o", "x", "-n", model, "--overwrite")
    assert result.exit_code == 2 and "would be written over the input" in result.stderr
    picture("x/a_seed0.png")
    arguments = ("upscale", "x/a.png", "x/a_seed0.png", "-o", "x", "-n", model, "--overwrite", "--num-samples", 2)
    assert run(*arguments).exit_code == 2
    assert size_of("x/a_seed0.png") == (12, 8)


def test_dry_run_needs_no_model_and_writes_nothing(run, picture) -> None:
    picture("in/a.png"), picture("in/sub/b.jpg")
    result = run("upscale", "in", "-o", "out", "-r", "--dry-run", "--num-samples", 2)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "in/a.png -> out/a_seed0.png",
        "in/a.png -> out/a_seed1.png",
        "in/sub/b.jpg -> out/sub/b_seed0.jpg",
        "in/sub/b.jpg -> out/sub/b_seed1.jpg",
    ]
    assert the_json(run("upscale", "in/a.png", "--dry-run", "--json"))["results"] == [
        {"source": "in/a.png", "output": "in/a_x4.png"}
    ]
    assert not Path("out").exists()


# --- failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2])
def test_corrupt_file_in_a_folder(run, model, picture, batch) -> None:
    picture("in/a.png"), picture("in/c.png")
    Path("in/b.png").write_bytes(picture("whole.png", size=(99, 99)).read_bytes()[:2000])
    result = run("upscale", "in", "-o", "out", "-n", model, "-b", batch, "--json")
    assert result.exit_code == 1
    assert files_in("out") == ["a.png", "c.png"]
    assert "2 written, 1 failed" in result.stderr
    assert "failed:\n  in/b.png: the PNG data is corrupt or truncated" in result.stderr
    assert SILENT not in result.stderr
    report = the_json(result)
    assert report["results"][1]["error"]["code"] == "invalid_image"
    assert {k: v for k, v in report["summary"].items() if k != "seconds"} == {
        "written": 2,
        "failed": 1,
        "skipped": 0,
        "interrupted": False,
    }
    assert SILENT in run("upscale", "in/b.png", "-n", model, "-v").stderr


def test_output_parent_is_a_file(run, model, picture) -> None:
    picture("a.png")
    Path("blocked").write_text("")
    result = run("upscale", "a.png", "-o", "blocked/out/", "-n", model)
    assert result.exit_code == 1
    assert "cannot write" in result.stderr and "not a folder" in result.stderr and SILENT not in result.stderr


def test_a_write_that_fails_leaves_the_rest(run, model, picture, monkeypatch) -> None:
    from varsr_engine import atomic

    synchronised: list[int] = []

    def full_disk(file: int) -> None:
        synchronised.append(file)
        if len(synchronised) == 1:
            raise OSError(28, "No space left on device")

    picture("in/a.png"), picture("in/b.png")
    monkeypatch.setattr(atomic.os, "fsync", full_disk)
    result = run("upscale", "in", "-o", "out", "-n", model)
    assert result.exit_code == 1
    assert "the disk is full" in result.stderr
    assert files_in("out") == ["b.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--seed", "abc"), "seed must be an integer"),
        (("--seed", "-1"), "seed must be an integer in [0, 2^63)"),
        (("--seed", str(2**63)), "seed must be"),
        (("--seed", str(MAX_SEED), "--num-samples", "2"), "for 2 samples"),
        (("--scale", "0"), "scale must be a number in (0, 64]"),
        (("--scale", "nan"), "scale must be"),
        (("--scale", "2", "--longest-side", "100"), "given one at a time"),
        (("--target-size", "100"), "target_size must be WIDTHxHEIGHT"),
        (("--target-size", "0x5"), "target_size must be"),
        (("--longest-side", "-5"), "longest_side must be"),
        (("--top-p", "2"), "top_p must be"),
        (("--temperature", "0"), "temperature must be"),
        (("--color-fix", "lab"), "color_fix must be"),
        (("--alpha", "maybe"), "alpha must be"),
        (("--dtype", "fp8"), "dtype must be"),
        (("--device", "tpu"), "device must be"),
        (("--backend", "metal"), "backend must be"),
        (("--quantization", "int8"), "quantization must be none or fp8"),
        (("--numerics", "exact"), "numerics must be fast or batch_invariant"),
        (("--quantization", "fp8", "--device", "cpu"), "a CPU has no FP8 products; use quantization none"),
        (("--ext", "gif"), "ext must be"),
        (("--suffix", "a/b"), "suffix must not contain a folder separator"),
        (("--config", "no.toml"), "cannot be read"),
        (("--label", "7"), "labels must be an integer in [0, 1]"),
        (("--steps", "0"), "steps must be"),
        (("--tile", "on"), "tile must be one of"),
        (("--tile-overlap", "-1"), "tile_overlap must be"),
        (("--tile-overlap", "8"), "tile_overlap must be an integer in [0, 7] cells"),
        (("--refiner-temperature", "-1"), "refiner_temperature must be"),
        (("--stop-at-scale", "0"), "stop_at_scale must be"),
        (("--stop-at-scale", "99"), "stop_at_scale must be a number of scales in [1, "),
    ],
)
def test_bad_values(run, model, picture, options, message) -> None:
    picture("a.png")
    result = run("upscale", "a.png", "-n", model, *options)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr and result.stderr.startswith("error: ")
    assert SILENT not in result.stderr and files_in(".") == ["a.png"]


@pytest.mark.parametrize(
    "options", [("--quality", "101"), ("--scale", "big"), ("--num-samples", "0"), ("-b", "0"), ("--nope",)]
)
def test_usage_errors(run, picture, options) -> None:
    assert run("upscale", picture("a.png"), *options).exit_code == 2


def test_absent_input(run, model) -> None:
    for name, message in (("no.png", "does not exist"), ("*.png", "matches no image")):
        result = run("upscale", name, "-n", model)
        assert result.exit_code == 2 and message in result.stderr


def test_missing_model(run, picture, monkeypatch) -> None:
    picture("a.png")
    monkeypatch.setattr("varsr_engine.packaged.ASSETS", Path("no/assets"))
    result = run("upscale", "a.png", "-o", "out/")
    assert result.exit_code == 78 and not Path("out").exists()
    assert "'varsr-mini'" in result.stderr and "VARSR.pth" in result.stderr and "varsr convert" in result.stderr
    result = run("upscale", "a.png", "-n", "no/such/model", "--json")
    assert result.exit_code == 78 and SILENT not in result.stderr
    assert the_json(result)["error"]["code"] == "model_not_found"


def test_unexpected_exception_costs_one_image(run, model, picture, monkeypatch) -> None:
    for name in "abc":
        picture(f"in/{name}.png", size=(12, 9 if name == "b" else 8))
    batch = Engine._upscale_batch

    def buggy(self: Engine, pictures: list[Any], *rest: Any) -> Any:
        if any(p.height == 9 for p in pictures):
            raise ZeroDivisionError("a bug")
        return batch(self, pictures, *rest)

    monkeypatch.setattr(Engine, "_upscale_batch", buggy)
    for size in (1, 3):
        result = run("upscale", "in", "-o", f"out{size}", "-n", model, "-b", size)
        assert result.exit_code == 1
        assert files_in(f"out{size}") == ["a.png", "c.png"]
        assert "unexpected ZeroDivisionError: a bug (run with -v" in result.stderr and SILENT not in result.stderr
    assert "in buggy" in run("upscale", "in", "-o", "out", "-n", model, "-v").stderr


def test_interrupted_in_the_network(run, model, picture, monkeypatch) -> None:
    for name in "abc":
        picture(f"in/{name}.png")
    batch, calls = Engine._upscale_batch, []

    def interrupted(self: Engine, *arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return batch(self, *arguments)

    monkeypatch.setattr(Engine, "_upscale_batch", interrupted)
    result = run("upscale", "in", "-o", "out", "-n", model, "--json")
    assert result.exit_code == 130
    assert files_in("out") == ["a.png"] and size_of("out/a.png") == (48, 32)
    report = the_json(result)
    assert report["summary"]["interrupted"] and report["summary"]["written"] == 1
    assert "interrupted" in result.stderr and SILENT not in result.stderr


def test_interrupted_while_writing(run, model, picture, monkeypatch) -> None:
    from varsr_engine import atomic

    replace, calls = os.replace, []

    def interrupted(*arguments: Any) -> None:
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(*arguments)

    picture("in/a.png"), picture("in/b.png")
    monkeypatch.setattr(atomic.os, "replace", interrupted)
    assert run("upscale", "in", "-o", "out", "-n", model).exit_code == 130
    assert files_in("out") == ["a.png"]


# --- what is said ----------------------------------------------------------------------------------------


def test_json(run, model, picture) -> None:
    picture("a.png")
    result = run("upscale", "a.png", "-n", model, "--json", "--seed", 3)
    (entry,) = the_json(result)["results"]
    assert (entry["source"], entry["output"], entry["seed"], entry["size"]) == ("a.png", "a_x4.png", 3, [48, 32])
    assert entry["warnings"] == [] and {"condition", "scale.0", "refiner", "decoder"} <= set(entry["seconds"])


def test_a_draft(run, model, picture) -> None:
    picture("a.png")
    result = run("upscale", "a.png", "-n", model, "--json", "--stop-at-scale", 2)
    (entry,) = the_json(result)["results"]
    assert entry["stop_at_scale"] == 2 and list(entry["seconds"]) == ["condition", "scale.0", "scale.1", "decoder"]


def test_quiet(run, model, picture) -> None:
    result = run("upscale", picture("a.png"), "-n", model, "-q")
    assert (result.stdout, result.stderr) == ("", "")
    Path("b.png").write_bytes(b"")
    assert "b.png: the file is empty" in run("upscale", "b.png", "-n", model, "-q").stderr


def test_bars_in_a_terminal(run, model, picture, monkeypatch) -> None:
    from varsr_engine.commands import reporting

    monkeypatch.setattr(reporting, "is_interactive", lambda: True)
    picture("in/a.png"), picture("in/[b].png")
    Path("in/c.png").write_bytes(b"")
    picture("in/d.png", size=(40, 8))
    result = run("upscale", "in", "-o", "out", "-n", model, "-b", 2)
    assert result.exit_code == 1
    assert "in/[b].png -> out/[b].png" in result.stderr and "3 written, 1 failed" in result.stderr


# --- on a GPU ------------------------------------------------------------------------------------------------


def test_a_gpu_is_prepared_before_the_first_image(run, model, picture, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def warmup(self: Engine, batch_sizes: list[int], on_progress: Any) -> None:
        on_progress(0, 1)
        order.append(f"warmup {batch_sizes}")

    upscale_many = Engine.upscale_many

    def upscaling(self: Engine, *args: Any, **kwargs: Any) -> Any:
        order.append("upscale")
        return upscale_many(self, *args, **kwargs)

    monkeypatch.setattr(Engine, "warmup", warmup)
    monkeypatch.setattr(Engine, "upscale_many", upscaling)
    source = picture("in/a.png")
    assert run("upscale", source, "-o", "out/a.png", "-n", model).exit_code == 0
    assert order == ["upscale"]  # a CPU has nothing to prepare
    monkeypatch.setattr(Engine, "captures_graphs", True)
    assert run("upscale", source, "-o", "out/b.png", "-n", model, "-b", "2").exit_code == 0
    assert order[1:] == ["warmup [2]", "upscale"]


# --- outputs by rows -----------------------------------------------------------------------------------------


def test_a_large_png_is_written_by_rows(run, model, picture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file as otherwise, and the same report; whatever needs the whole picture gets it."""
    source = picture("in/a.png", size=(23, 17))
    assert run("upscale", source, "-o", "out/whole.png", "-n", model).exit_code == 0
    calls: list[str] = []
    upscale_to = Engine.upscale_to

    def recorded(self: Engine, *args: Any, **kwargs: Any) -> Any:
        calls.append(str(args[1]))
        return upscale_to(self, *args, **kwargs)

    monkeypatch.setattr(Engine, "upscale_to", recorded)
    monkeypatch.setattr(upscale_command, "STREAM_ABOVE", 100)
    result = run("upscale", source, "-o", "out/rows.png", "-n", model, "--json")
    assert result.exit_code == 0, result.stderr
    (entry,) = the_json(result)["results"]
    assert calls == ["out/rows.png"] and entry["output"] == "out/rows.png" and entry["size"] == [92, 68]
    assert "-> out/rows.png  92x68" in result.stderr
    with Image.open("out/rows.png") as rows, Image.open("out/whole.png") as whole:
        assert rows.tobytes() == whole.tobytes()
    for options in (["-o", "out/a.jpg"], ["-o", "out/c.png", "--compare"], ["-o", "out/d.png", "--tile", "off"]):
        assert run("upscale", source, "-n", model, *options).exit_code == 0
    assert len(calls) == 1
    assert run("upscale", source, "-o", "out/rows.png", "-n", model).exit_code != 0  # exists already
    broken = Path("in/broken.png")
    broken.write_bytes(b"no image")
    result = run("upscale", broken, source, "-o", "many/", "--ext", "png", "-n", model)
    assert result.exit_code == 1 and "1 written, 1 failed" in result.stderr


# --- what it takes -------------------------------------------------------------------------------------------


def test_plan(run, model, picture) -> None:
    source = picture("in/a.png", size=(60, 50))
    result = run("upscale", source, "-o", "out/a.png", "-n", model, "--plan", "--json", "--memory-budget", "1G")
    assert result.exit_code == 0, result.stderr
    (entry,) = the_json(result)["results"]
    assert entry["tiles"] > 1 and entry["size"] == [240, 200] and entry["seconds"] > 0
    assert entry["peak_bytes"] > entry["weight_bytes"] > 0
    assert not Path("out").exists()
    assert "tiles, " in run("upscale", source, "-o", "out/a.png", "-n", model, "--plan").stdout
