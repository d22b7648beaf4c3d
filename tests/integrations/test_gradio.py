"""The Gradio page: what its button runs on a stub of Gradio, and `varsr demo` itself where Gradio is installed."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.engine.test_tiling import picture
from varsr_engine.commands import demo
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.params import EngineConfig
from varsr_engine.errors import InvalidParamsError

MODULE = "varsr_engine.integrations.gradio"


class StubError(Exception):
    """gradio.Error."""


class Component:
    """Any component: a context, with a click."""

    made: list[Component]

    def __init__(self, *values: Any, **settings: Any) -> None:
        self.settings = settings
        self.clicked: tuple[Any, ...] = ()
        type(self).made.append(self)

    def __enter__(self) -> Component:
        return self

    def __exit__(self, *_: object) -> None: ...

    def click(self, *what: Any, **settings: Any) -> None:
        self.clicked = (*what, settings)

    def queue(self, max_size: int) -> None:
        assert max_size > 0


@pytest.fixture
def module(stub_modules: Callable[..., ModuleType]) -> Iterator[Any]:
    names = ("Blocks", "Row", "Column", "Image", "Slider", "Radio", "Number", "Button", "ImageSlider", "Markdown")
    kinds = {name: type(name, (Component,), {"made": []}) for name in names}
    stub_modules("gradio", Error=StubError, **kinds)
    sys.modules.pop(MODULE, None)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE, None)


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    Image.fromarray(picture(8, 8)).save(path)
    return str(path)


def test_the_button_shows_every_scale_and_the_result(module: Any, micro: Engine, photo: str) -> None:
    *previews, (last, text) = module.upscaling(micro)(photo, 4, "quality", 3)
    assert len(previews) > micro.model_config.num_scales
    for (before, after), _ in previews:
        assert before.size == after.size == (32, 32)
    assert np.array_equal(np.asarray(last[1]), micro.upscale(photo, seed=3).array)
    assert last[0].size == (32, 32)
    assert text.startswith("32 × 32 pixels, seed 3, ")
    steps = [int(line.split()[0]) for _, line in previews]
    assert steps == sorted(steps)


def test_errors_are_told_on_the_page(module: Any, micro: Engine, tmp_path: Path) -> None:
    with pytest.raises(StubError, match="Choose an image first"):
        next(module.upscaling(micro)(None, 4, "quality", 0))
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(StubError, match="not an image"):
        next(module.upscaling(micro)(str(tmp_path / "bad.png"), 4, "quality", 0))


def test_leaving_the_page_cancels(module: Any, micro: Engine, photo: str) -> None:
    before = micro.stats().cancelled
    shown = module.upscaling(micro)(photo, 4, "quality", 0)
    next(shown)
    shown.close()
    assert micro.stats().cancelled == before + 1


def test_the_page_is_silent_and_bounded(module: Any, micro: Engine) -> None:
    page = module.build_demo(micro)
    assert page.settings["analytics_enabled"] is False and page.settings["delete_cache"]
    (button,) = module.gr.Button.made
    assert button.clicked[-1]["concurrency_limit"] == micro.largest_batch


@pytest.mark.skipif(importlib.util.find_spec("gradio") is not None, reason="Gradio is installed")
def test_without_gradio_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*demo.SILENT, "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "")  # given back afterwards
    with pytest.raises(InvalidParamsError, match=r"varsr demo needs gradio: pip install 'varsr-engine\[gradio\]'"):
        demo.run_demo(None, EngineConfig(), host="127.0.0.1", port=0, browser=False)


def test_a_host_that_is_not_this_machines() -> None:
    with pytest.raises(InvalidParamsError, match="host must be an address of this machine"):
        demo.free_port("192.0.2.1")
    assert demo.free_port("127.0.0.1") > 0


# Runs `varsr demo`, and tells of every look-up or connection that is not this machine's own.
WATCHED = """
import sys

def watch(event, args):
    if event == "socket.getaddrinfo":
        place = args[0]
    elif event == "socket.connect" and isinstance(args[1], tuple):
        place = args[1][0]
    else:
        return
    name = place.decode() if isinstance(place, bytes) else str(place)
    if name not in ("127.0.0.1", "::1", "localhost", "None", "0.0.0.0"):
        print(f"OUTBOUND {event} {name}", file=sys.stderr, flush=True)

sys.addaudithook(watch)
from varsr_engine.cli import main
sys.argv = ["varsr", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
def test_the_command_serves_and_calls_nobody(tmp_path: Path, photo: str) -> None:
    pytest.importorskip("gradio")
    from gradio_client import Client, handle_file

    port, log = demo.free_port("127.0.0.1"), tmp_path / "log"
    command = [sys.executable, "-c", WATCHED, "demo", "--port", str(port), "--no-browser", "--device", "cpu"]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GRADIO_", "HF_", "VARSR_"))}
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=clean | {"GRADIO_TEMP_DIR": str(tmp_path)})
    try:
        started = time.monotonic()
        url = f"http://127.0.0.1:{port}"
        while True:
            assert process.poll() is None and time.monotonic() - started < 120, log.read_text()
            try:
                html = urllib.request.urlopen(url, timeout=5).read().decode()
                break
            except OSError:
                time.sleep(0.3)
        assert "fonts.googleapis.com/css" not in html
        client = Client(url, verbose=False)
        job = client.submit(handle_file(photo), 4, "quality", 0, api_name="/upscale")
        (_, after), text = job.result(120)
        assert text.startswith("32 × 32 pixels, seed 0, ")
        assert np.array_equal(np.asarray(Image.open(after)), Engine.from_pretrained(device="cpu").upscale(photo).array)
        assert len(job.outputs()) > 3  # previews came before
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        finally:
            process.kill()
    assert "OUTBOUND" not in log.read_text(), log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()
