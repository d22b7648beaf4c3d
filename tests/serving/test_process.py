"""`varsr serve` as a process: its end by SIGTERM, its death by SIGKILL, and what it says where it cannot begin."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.test_tiling import picture
from tests.serving.images import png
from tests.serving.test_upscale import eventually
from varsr_engine.engine.engine import Engine

ROOT = Path(__file__).parents[2]
HEADERS = {"content-type": "image/png"}


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VARSR_", "COV_", "TRITON_"))}
    return kept | more


@contextlib.contextmanager
def process(*options: str, port: int = 0, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A server that is ready, its URL, and the lines of its stderr."""
    command = [sys.executable, "-m", "varsr_engine", "serve", "--port", str(port), "--device", "cpu", *options]
    running = subprocess.Popen(command, cwd=ROOT, env=environment(**variables), stderr=subprocess.PIPE, text=True)
    lines: list[str] = []

    def collect() -> None:
        assert running.stderr is not None
        for line in running.stderr:
            lines.append(line)

    reader = threading.Thread(target=collect, daemon=True)
    reader.start()
    try:
        done = eventually(lambda: any(line.startswith("ready: ") for line in lines) or running.poll() is not None, 120)
        assert done, "".join(lines)
        assert running.poll() is None, "".join(lines)
        url = re.search(r"http://\S+", "".join(lines))
        assert url is not None
        yield running, url[0], lines
    finally:
        if running.poll() is None:
            running.kill()
        running.wait(10)
        reader.join(10)
        if running.stderr is not None:
            running.stderr.close()


@pytest.fixture(scope="module")
def offline() -> Iterator[Engine]:
    engine = Engine.from_pretrained("varsr-mini", device="cpu", numerics="batch_invariant")
    yield engine
    engine.close()


@pytest.mark.slow
def test_sigterm_with_12_in_flight(offline: Engine) -> None:
    """12 answers, each with the pixels of the engine offline, then exit code 0."""
    sources = [png(picture(20 + n, 20, seed=n)) for n in range(12)]
    with (
        process("--drain-timeout", "300") as (running, url, lines),
        ThreadPoolExecutor(12) as pool,
        httpx.Client(timeout=300) as client,
    ):

        def upscale(n: int) -> httpx.Response:
            return client.post(f"{url}/v1/upscale?seed={n}", content=sources[n], headers=HEADERS)

        def in_flight() -> bool:
            text = client.get(f"{url}/metrics").text
            return "varsr_queue_units 12.0" in text

        answers = [pool.submit(upscale, n) for n in range(12)]
        assert eventually(in_flight)
        running.send_signal(signal.SIGTERM)
        assert eventually(lambda: client.get(f"{url}/readyz").status_code == 503, 5)
        refused = client.post(f"{url}/v1/upscale", content=sources[0], headers=HEADERS)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        for n, answer in enumerate(answers):
            assert answer.result().status_code == 200
            assert answer.result().content == offline.upscale(sources[n], seed=n).encode("PNG")
        assert running.wait(30) == 0
    logged = [json.loads(line) for line in lines if line.startswith("{")]
    assert sum(line["route"] == "/v1/upscale" and line["status"] == 200 for line in logged) == 12


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once() -> None:
    with process() as (running, url, _), ThreadPoolExecutor(1) as pool:
        source = png(picture(500, 500))
        answer = pool.submit(httpx.post, f"{url}/v1/upscale", content=source, headers=HEADERS, timeout=60)
        assert eventually(lambda: "varsr_busy" in httpx.get(f"{url}/metrics").text)
        time.sleep(1)
        running.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert running.poll() is None
        running.send_signal(signal.SIGINT)
        assert running.wait(20) is not None
        assert answer.exception() is not None or answer.result().status_code >= 500


@pytest.mark.slow
def test_kill_and_restart(offline: Engine, tmp_path: Path) -> None:
    """Clients that try again succeed, with the same pixels; no half file is left of the dead server's jobs."""
    sources = [png(picture(20 + n, 20, seed=n)) for n in range(8)]
    expected = [offline.upscale(source).encode("PNG") for source in sources]
    stop = threading.Event()
    counts = {"right": 0, "wrong": 0, "retries": 0}
    lock = threading.Lock()
    ports: list[int] = []

    def client(n: int) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{ports[0]}", headers=HEADERS, timeout=60) as session:
            while not stop.is_set():
                ask(n, session)

    def ask(n: int, session: httpx.Client) -> None:
        try:
            answer = session.post("/v1/upscale", content=sources[n])
        except httpx.TransportError:
            answer = None
        with lock:
            if answer is None or answer.status_code == 503:
                counts["retries"] += 1
            elif answer.status_code == 200 and answer.content == expected[n]:
                counts["right"] += 1
            else:
                counts["wrong"] += 1
        if answer is None or answer.status_code == 503:
            time.sleep(0.2)

    options = ("--job-folder", str(tmp_path), "--quiet")
    with ThreadPoolExecutor(8) as pool:
        try:
            with process(*options) as (running, url, _):
                ports.append(int(url.rpartition(":")[2]))
                job = httpx.post(f"{url}/v1/jobs?scale=8", content=png(picture(200, 200)), headers=HEADERS)
                assert job.status_code == 202
                clients = [pool.submit(client, n) for n in range(8)]
                assert eventually(lambda: counts["right"] >= 8, 60)
                assert len(list(tmp_path.glob("varsr-jobs-*"))) == 1
                running.kill()
                running.wait(10)
            before = counts["right"]
            (left,) = tmp_path.glob("varsr-jobs-*")
            with process(*options, port=ports[0]) as (running, url, _):
                done = httpx.post(f"{url}/v1/jobs", content=sources[0], headers=HEADERS).headers["location"]
                assert not left.exists()
                assert eventually(lambda: counts["right"] >= before + 16, 60)
                assert eventually(lambda: httpx.get(url + done).json()["status"] == "succeeded", 60)
                assert httpx.get(f"{url}{done}/result").content == expected[0]
                stop.set()
                for future in clients:
                    future.result(60)
                running.send_signal(signal.SIGTERM)
                assert running.wait(20) == 0
        finally:
            stop.set()
    assert counts["wrong"] == 0 and counts["retries"] > 0
    assert list(tmp_path.iterdir()) == []


def fails(*options: str, **variables: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "varsr_engine", "serve", "--port", "0", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


def test_other_machines_need_a_key() -> None:
    code, text = fails("--host", "0.0.0.0")
    assert code == 2 and "VARSR_API_KEY" in text and "--insecure" in text


@pytest.mark.slow
def test_what_cannot_begin(tmp_path: Path) -> None:
    code, text = fails("--model", str(tmp_path / "none.safetensors"))
    assert code == 78 and "none.safetensors" in text
    code, text = fails("--host", "192.0.2.1", VARSR_API_KEY="a-long-secret")
    assert code == 2 and "cannot listen on 192.0.2.1" in text
    (tmp_path / "server.toml").write_text("max_bodi_bytes = 5")
    code, text = fails("--server-config", str(tmp_path / "server.toml"))
    assert code == 2 and "did you mean 'max_body_bytes'" in text


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from varsr_engine.cli import app

    for name in [name for name in sys.modules if name.startswith("varsr_engine.serving.")]:
        if name != "varsr_engine.serving.settings":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    result: Any = CliRunner().invoke(app, ["serve", "--port", "0"])
    assert result.exit_code == 2
    assert "pip install 'varsr-engine[server]'" in result.output
