"""Ray itself, on clusters of this machine: a node that dies under traffic, and datasets that are divided and resumed.

`make test-ray` installs Ray beside the environment and runs them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPMessage
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.conftest import files_in
from tests.engine.test_tiling import MICRO, picture
from tests.golden_cases import weights
from tests.serving.images import pixels, png
from varsr_engine.checkpoint import write_checkpoint
from varsr_engine.engine.params import UpscaleParams
from varsr_engine.errors import InvalidImageError, InvalidParamsError
from varsr_engine.integrations.ray_data import DatasetJob, dataset, find_pending
from varsr_engine.serving.client import Client

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "ray.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
STORE = 200_000_000  # bytes of shared memory
IMAGES, CORRUPT = 200, 5
BUSY = "timed out during startup"  # what Ray says where its processes have no processor for half a minute


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Ray's processes inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else Ray writes a token to the home folder
        # Else the head's proxy would send all requests to the head's replica, and the other node die unused.
        patch.setenv("RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING", "0")
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tiles of 32 x 32 pixels, some hundredths of a second each."""
    tensors = weights(MICRO, 0)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return str(write_checkpoint(tmp_path_factory.mktemp("model"), MICRO, shapes, tensors.__getitem__))


@contextlib.contextmanager
def one_node(cpus: int) -> Iterator[None]:
    for tries_left in (2, 1, 0):
        try:
            ray.init(num_cpus=cpus, include_dashboard=False, object_store_memory=STORE, log_to_driver=False)
            break
        except Exception as error:
            if BUSY not in str(error) or not tries_left:
                raise
    try:
        yield
    finally:
        ray.shutdown()


def run(*command: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A process that starts Ray, and what it printed."""
    for _ in range(3):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
        if BUSY not in done.stderr:
            break
    return done


class CountingClient(Client):
    """Notes what each try came to: a status, or the kind of exception."""

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout=60, attempts=12)
        self.tries: Counter[int | str] = Counter()
        self._lock = threading.Lock()

    def _post(self, parts: Any, query: str, image: bytes) -> tuple[int, HTTPMessage, bytes]:
        try:
            answer = super()._post(parts, query, image)
        except Exception as error:
            with self._lock:
                self.tries[type(error).__name__] += 1
            raise
        with self._lock:
            self.tries[answer[0]] += 1
        return answer


def ongoing(replica: Any) -> int:
    """Requests that a replica works on, by its own count."""
    handle = ray.get_actor(replica["name"], namespace="serve")
    return int(ray.get(handle.get_num_ongoing_requests.remote(), timeout=10))


def test_a_node_dies_under_traffic(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Two replicas on two nodes, of which one is killed while it works: clients that try again see no failure."""
    from ray import serve
    from ray.cluster_utils import Cluster
    from ray.util.state import list_actors

    from varsr_engine.integrations.ray_serve import RayServeArgs, build_app

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    node = {"num_cpus": 4, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": True})
    try:
        victim = cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        cluster.wait_for_nodes()
        started = time.monotonic()
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        serve.run(build_app(RayServeArgs(model=model, num_replicas=2, max_replicas_per_node=1)), name="varsr")
        bring_up = time.monotonic() - started

        client = CountingClient(f"http://127.0.0.1:{port}")
        images = [png(np.roll(picture(16, 16), shift, 0)) for shift in range(8)]
        expected = [client.upscale(image, seed=1) for image in images]
        assert pixels(expected[0]).shape == (64, 64, 3)
        with pytest.raises(InvalidImageError):
            client.upscale(b"\x89PNG\r\n\x1a\nbroken")
        client.tries.clear()

        replicas = [
            {"name": actor.name, "node": actor.node_id}
            for actor in list_actors(filters=[("state", "=", "ALIVE")], detail=True)
            if "#varsr#" in (actor.name or "")
        ]
        (doomed,) = (replica for replica in replicas if replica["node"] == victim.node_id)
        assert len(replicas) == 2

        times: list[float] = []

        def ask(i: int) -> bool:
            same = client.upscale(images[i % 8], seed=1) == expected[i % 8]
            times.append(time.monotonic())
            return same

        with ThreadPoolExecutor(8) as threads:
            answers = [threads.submit(ask, i) for i in range(240)]
            while len(times) < 60 or (busy := ongoing(doomed)) == 0:
                time.sleep(0.02)
            before = len(times)
            cluster.remove_node(victim, allow_graceful=False)
            same = [answer.result() for answer in answers]
        gap = max(b - a for a, b in itertools.pairwise(times))
        with capsys.disabled():
            print(
                f"\nserve: up in {bring_up:.1f} s; node killed after {before} answers with {busy} requests on it; "
                f"{sum(same)} of {len(same)} answered, the same bytes; tries {dict(client.tries)}; "
                f"longest gap {gap:.2f} s"
            )
        assert busy > 0  # the victim had traffic
        assert len(same) == 240 and all(same)
        assert client.tries[200] == 240
    finally:
        with contextlib.suppress(Exception):
            serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def test_what_the_routes_answer_on_ray(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Health, events, errors and jobs, through Ray's proxy; and the deployment by handle."""
    from ray import serve

    from varsr_engine.integrations.ray_serve import build_app

    httpx = pytest.importorskip("httpx")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with one_node(4):
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build

            handle = serve.run(build(build_app, {"model": model, "num_replicas": "1"}), name="varsr")
            with pytest.raises(ValueError, match="replicas"):
                build(build_app, {"replicas": "2"})
            data, url = png(picture(8, 8)), f"http://127.0.0.1:{port}"
            assert httpx.get(f"{url}/readyz", timeout=60).json() == {"status": "ok", "state": "ready"}
            kind = {"content-type": "image/png"}
            events = httpx.post(
                f"{url}/v1/upscale", content=data, headers=kind | {"accept": "text/event-stream"}, timeout=60
            ).text
            assert "event: accepted" in events and "event: result" in events
            with pytest.raises(InvalidParamsError, match="scale"):
                Client(url).upscale(data, scale=-1)
            refused = httpx.post(f"{url}/v1/jobs", content=data, headers=kind, timeout=60)
            assert refused.status_code == 404 and "upscale-dataset" in refused.json()["error"]["message"]
            array = handle.upscale.remote(data, seed=3).result(timeout_s=60)
            assert np.array_equal(array, pixels(Client(url).upscale(data, seed=3)))
            monkeypatch.chdir(ROOT / "examples")
            done: dict[str, Any] = {}
            exec(SNIPPETS[0].replace("http://127.0.0.1:8000", url).replace("scale=4", "scale=0.1"), done)
            assert done["png"].startswith(b"\x89PNG")
        finally:
            with contextlib.suppress(Exception):
                serve.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 images in four folders, 5 of them corrupt."""
    folder, rng = tmp_path_factory.mktemp("source"), np.random.default_rng(0)
    for i in range(IMAGES):
        path = folder / f"part{i % 4}" / f"{i:03}.png"
        path.parent.mkdir(exist_ok=True)
        data = png(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        path.write_bytes(data[: len(data) // 2] if i % (IMAGES // CORRUPT) == 7 else data)
    return folder


def command(source: Path, out: Path, model: str, *more: str) -> list[str]:
    words = [sys.executable, "-m", "varsr_engine", "upscale-dataset", str(source), str(out), "--model", model]
    return [*words, "--seed", "5", "--json", *more]


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """What changes when a file is written again."""
    status = {path: path.stat() for path in folder.rglob("*.png")}
    return {str(path.relative_to(folder)): (s.st_ino, s.st_mtime_ns) for path, s in status.items()}


def start_and_kill(command: list[str], when: Callable[[], bool]) -> str:
    """Start a process and kill its group; what it wrote to stderr."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 400
    while not when() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[1]


def test_dataset_killed_resumed_and_divided_otherwise(
    source: Path, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is killed and started again keeps what is finished; another division gives the same bytes."""
    out, other = tmp_path / "out", tmp_path / "other"
    for _ in range(3):
        killed = start_and_kill(command(source, out, model, "--workers", "2"), lambda: len(identities(out)) >= 60)
        if BUSY not in killed:
            break
    time.sleep(5)  # Ray's own processes notice, and end
    finished = identities(out)
    assert 60 <= len(finished) < IMAGES - CORRUPT

    started = time.monotonic()
    second = run(*command(source, out, model, "--workers", "2"))
    took = time.monotonic() - started
    assert second.returncode == 1, second.stderr
    answer = json.loads(second.stdout)
    assert "summary" in answer, answer
    summary = answer["summary"]
    assert summary["skipped"] == len(finished)
    assert summary["written"] == IMAGES - CORRUPT - len(finished)
    assert summary["failed"] == CORRUPT
    assert {row["code"] for row in answer["failed"]} == {"invalid_image"}
    assert finished.items() <= identities(out).items()  # none was written again

    job = DatasetJob(str(source), str(other), model, UpscaleParams(seed=5))
    with one_node(4):
        names = find_pending(job).names[::-1]
        rows = dataset(job, names, workers=3, images_per_block=7).take_all()
    status = Counter(row["status"] for row in rows)
    assert status == {"written": IMAGES - CORRUPT, "failed": CORRUPT}
    assert len({row["seed"] for row in rows}) == IMAGES

    mine = {name: data for name, data in outputs(out).items() if not Path(name).name.startswith(".varsr-")}
    assert len(mine) == IMAGES - CORRUPT
    assert mine == outputs(other)
    third = run(*command(source, out, model, "--workers", "1"))
    assert json.loads(third.stdout)["summary"] | {"seconds": 0} == {
        "written": 0,
        "failed": CORRUPT,
        "skipped": IMAGES - CORRUPT,
        "interrupted": False,
        "seconds": 0,
    }
    with capsys.disabled():
        print(
            f"\ndata: killed after {len(finished)} of {IMAGES}; resumed in {took:.1f} s: {summary['written']} written, "
            f"{summary['skipped']} kept untouched, {summary['failed']} corrupt; {len(mine)} files the same bytes with "
            "3 workers, blocks of 7 and the order reversed"
        )


def test_the_first_fault_of_all_images_ends_the_run(source: Path, tmp_path: Path) -> None:
    """A model that is not there is said as such, with the exit code of `varsr upscale`; nothing is written."""
    done = run(*command(source, tmp_path / "out", str(tmp_path / "no-model"), "--workers", "1"))
    assert done.returncode == 78, done.stderr
    assert json.loads(done.stdout)["error"]["code"] == "model_not_found"
    assert not (tmp_path / "out").exists()


def test_the_documented_dataset(model: str, tmp_path: Path) -> None:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    (tmp_path / "photos" / "a" / "x.png").write_bytes(png(picture(8, 8)))
    (tmp_path / "photos" / "y.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    code = SNIPPETS[1].replace("varsr-mini", model)
    done = run(sys.executable, "-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = sorted(line for line in done.stdout.splitlines() if ".png" in line)
    assert lines[0].startswith("a/x.png written") and lines[1].startswith("y.png failed")
    assert files_in(tmp_path / "photos_x4") == ["a/x.png"]


def test_the_documented_config() -> None:
    import yaml
    from ray.serve.schema import ServeDeploySchema

    from varsr_engine.integrations.ray_serve import RayServeArgs, build_app

    (text,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    config = yaml.safe_load(text)
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    module, name = application["import_path"].split(":")
    assert (module, name) == (build_app.__module__, build_app.__name__)
    assert RayServeArgs.model_validate(application["args"]).num_replicas == 2


def test_the_documented_size() -> None:
    pins = (ROOT / "constraints-ray.txt").read_text().splitlines()
    names = [line.partition("==")[0] for line in pins if not line.startswith("#")]
    files = [file for name in names for file in distribution(name).files or []]
    size = sum(file.locate().stat().st_size for file in files if file.locate().is_file())
    (documented,) = re.findall(r"more than (\d+) MB on the disk", TEXT)
    assert 0.8 * size < int(documented) * 1e6 < size


def test_object_stores(model: str) -> None:
    """Through fsspec, in memory: nested names, sizes, reading, writing, resuming."""
    import fsspec

    from varsr_engine.integrations.ray_data import Upscaler

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/in/a/x.png", png(picture(8, 8)))
    memory.pipe("/bucket/in/y.png", b"\x89PNG\r\n\x1a\nbroken")
    memory.pipe("/bucket/in/.hidden.png", b"")
    job = DatasetJob("memory://bucket/in", "memory://bucket/out", model)
    pending = find_pending(job)
    assert pending.names == ["a/x.png", "y.png"]
    rows = Upscaler(job)({"name": pending.names})
    assert rows["status"] == ["written", "failed"] and rows["code"] == ["", "invalid_image"]
    assert pixels(memory.cat("/bucket/out/a/x.png")).shape == (32, 32, 3)
    assert find_pending(job).names == ["y.png"] and find_pending(job).kept == 1
