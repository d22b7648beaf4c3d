"""Options and their aliases, help, and how quickly mistakes are found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from varsr_engine.cli.options import ALIASES, BACKENDS, FLAGS, canonical_arguments, parse_bytes
from varsr_engine.commands import upscale as command
from varsr_engine.dispatch import ORDER
from varsr_engine.errors import InvalidParamsError


@pytest.mark.parametrize(("name", "alias"), [(name, alias) for name, aliases in ALIASES.items() for alias in aliases])
def test_alias_is_its_option(name: str, alias: str) -> None:
    own = "-s" if alias == "-u" else name
    spellings = {alias, "--" + alias[2:].replace("-", "_")} if len(alias) > 2 else {alias}
    for spelling in spellings:
        assert canonical_arguments([spelling, "value_1"]) == [own, "value_1"]
    if len(alias) > 2:
        assert canonical_arguments([f"{alias}=a_b-c"]) == [f"{name}=a_b-c"]


def test_backends_are_those_of_the_dispatcher() -> None:
    assert ("auto", *ORDER) == BACKENDS


def test_what_aliases_leave_alone() -> None:
    assert canonical_arguments(["-u2", "--", "--bs", "-u"]) == ["-s2", "--", "--bs", "-u"]
    assert canonical_arguments(["out_dir", "--skip_existing", "-o", "a_b"]) == [
        "out_dir",
        "--skip-existing",
        "-o",
        "a_b",
    ]


@pytest.mark.parametrize(
    ("typed", "canonical"),
    [
        ("-u 2 --save_dir o", "-s 2 -o o"),
        ("--outscale=3 --outdir=o --ckpt m", "--scale 3 --output o --model m"),
        ("--align_method nofix --ddpm_steps 5 --guidance_scale 2", "--color-fix none --steps 5 --cfg 2"),
        ("--gpu-id 1 --fp32 --bs 4", "-g cuda:1 --dtype fp32 -b 4"),
        ("--cuda_device cuda:0 --mixed_precision fp16 --skip_if_exist", "-g 0 --half --skip-existing"),
        ("--no_refiner --top_k 3 --n_samples 2", "--no-refiner --top-k 3 --num-samples 2"),
    ],
)
def test_aliases_in_a_command(run, monkeypatch, typed: str, canonical: str) -> None:
    runs: list[Any] = []
    monkeypatch.setattr(command, "run_upscale", runs.append)
    for line in (typed, canonical):
        result = run("upscale", "a.png", *line.split())
        assert result.exit_code == 0, result.stderr
    assert runs[0] == runs[1]


def test_config_file(run, monkeypatch) -> None:
    runs: list[Any] = []
    monkeypatch.setattr(command, "run_upscale", runs.append)
    Path("engine.toml").write_text('batch_size = 3\ndtype = "fp32"\n')
    assert run("upscale", "a.png", "--config", "engine.toml", "--dtype", "auto").exit_code == 0
    assert (runs[0].config.batch_size, runs[0].config.dtype) == (3, "auto")


def test_help_lists_every_alias(run) -> None:
    text = run("upscale", "--help").stdout
    for name in [alias for aliases in ALIASES.values() for alias in aliases] + list(FLAGS):
        assert name in text
    assert run("--version").stdout.startswith("varsr ")


NO_TORCH = """
import sys
from varsr_engine.cli import app
for line, code in {lines!r}:
    try:
        app(line.split())
    except SystemExit as end:
        assert (end.code or 0) == code, (line, end.code)
    assert "torch" not in sys.modules, line
"""


def test_help_and_mistakes_do_not_import_torch(picture) -> None:
    picture("a.png")
    lines = [
        ("--help", 0),
        ("upscale --help", 0),
        ("--version", 0),
        ("upscale a.png --scale -1", 2),
        ("upscale a.png --backend metal", 2),
        ("upscale a.png -o b.png --tile sometimes", 2),
        ("upscale no.png -n some/model", 2),
        ("upscale a.png --dry-run", 0),
    ]
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH.format(lines=lines)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_as_a_program(model, picture) -> None:
    """python -m varsr_engine: the exit code of a process, and stdout apart from stderr."""
    picture("a.png")
    arguments = [sys.executable, "-m", "varsr_engine", "upscale", "a.png", "-n", model, "--dry-run"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a.png -> a_x4.png\n", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, None), ("8G", 8 * 1024**3), ("1.5g", 1610612736), ("512MiB", 512 * 1024**2), ("64k", 65536), ("100", 100)],
)
def test_bytes(text: str | None, expected: int | None) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "0.0M", "8T", "8 G", "1e9"])
def test_bad_bytes(text: str) -> None:
    with pytest.raises(InvalidParamsError, match="memory_budget must be bytes, such as 8G or 512M"):
        parse_bytes(text)
