"""What the Ray integrations do without Ray: seeds, names, joins, rows, arguments, and the client that tries again."""

from __future__ import annotations

import builtins
import os
import pickle
import re
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.cli.conftest import files_in
from tests.engine.test_tiling import picture
from tests.serving.images import pixels, png
from varsr_engine.cli.options import params_of
from varsr_engine.commands import upscale_dataset as command
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.params import EngineConfig, UpscaleParams
from varsr_engine.errors import (
    EngineDeadError,
    InvalidImageError,
    InvalidParamsError,
    ModelNotFoundError,
    QueueFullError,
    UnsupportedFormatError,
    VarsrError,
)
from varsr_engine.integrations import ray_data
from varsr_engine.integrations.ray_data import (
    MAX_BLOCK,
    MAX_BLOCKS,
    DatasetJob,
    Upscaler,
    block_size,
    find_pending,
    seed_of,
)
from varsr_engine.integrations.ray_folders import LocalFolder, ObjectFolder, folder_of
from varsr_engine.integrations.ray_serve import NoJobs, RayServeArgs, Replica, build_app
from varsr_engine.serving import client as client_module
from varsr_engine.serving.client import Client, UnreachableError, pause
from varsr_engine.serving.errors import NotFoundError
from varsr_engine.serving.settings import ServerSettings


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("VARSR_"):
            monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a/1.png, a/2.jpg and b.gif, as empty files beside others that are no images."""
    for name in ("a/1.png", "a/2.jpg", "b.gif", "notes.txt", ".hidden.png", ".cache/3.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "in"


def job_of(folder: Path, **settings: Any) -> DatasetJob:
    return DatasetJob(str(folder), str(folder.parent / "out"), "model", **settings)


# --- names and seeds


def test_seeds_follow_from_the_job_and_the_name_alone() -> None:
    """sha256 of "5/a/1.png", its first 63 bits, as computed elsewhere."""
    assert seed_of(5, "a/1.png") == 0x6EDA93518186A945 >> 1
    seeds = {seed_of(seed, name) for seed in (0, 1) for name in ("a", "b", "a/b", "\udcff")}
    assert len(seeds) == 8 and all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("ext", "name", "output"),
    [
        ("auto", "a/x.JPG", "a/x.JPG"),
        ("auto", "a.b/x.gif", "a.b/x.png"),
        ("auto", "x.bmp", "x.png"),
        ("webp", "a/x.png", "a/x.webp"),
        (".PNG", "x.jpeg", "x.png"),
    ],
)
def test_names_of_outputs(folder: Path, ext: str, name: str, output: str) -> None:
    assert job_of(folder, ext=ext).output(name) == output


def test_jobs_that_cannot_be(folder: Path) -> None:
    with pytest.raises(InvalidParamsError, match="seed must be a number"):
        job_of(folder, params=UpscaleParams(seed=None))
    with pytest.raises(UnsupportedFormatError, match="ext must be auto or one of"):
        job_of(folder, ext="gif")
    for out in (folder, folder.parent):
        with pytest.raises(InvalidParamsError, match="could replace inputs"):
            DatasetJob(str(folder), str(out), "model")
    DatasetJob(str(folder), f"{folder}-out", "model")  # beside it


def test_local_and_other_folders(tmp_path: Path) -> None:
    assert folder_of(f"file://{tmp_path}/x/") == folder_of(f"{tmp_path}/x") == LocalFolder(f"{tmp_path}/x")
    store = folder_of("s3://bucket/prefix/")
    assert isinstance(store, ObjectFolder) and store.root == "s3://bucket/prefix"
    assert pickle.loads(pickle.dumps(store)) == store


# --- what is left to do


def test_images_without_output_are_pending(folder: Path) -> None:
    job = job_of(folder)
    assert find_pending(job).names == ["b.gif", "a/1.png", "a/2.jpg"]
    (folder.parent / "out" / "a").mkdir(parents=True)
    for name in ("a/1.png", "b.png", ".varsr-0123.tmp"):
        (folder.parent / "out" / name).touch()
    pending = find_pending(job)
    assert (pending.names, pending.kept) == (["a/2.jpg"], 2)
    again = find_pending(job_of(folder, overwrite=True))
    assert (len(again.names), again.kept) == (3, 0)


def test_outputs_inside_the_source_are_no_inputs(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "b.png").touch()
    pending = find_pending(DatasetJob(str(folder), str(folder / "out"), "model"))
    assert (pending.names, pending.kept) == (["a/1.png", "a/2.jpg"], 1)


def test_two_images_for_one_output(folder: Path) -> None:
    (folder / "b.bmp").touch()
    with pytest.raises(InvalidParamsError, match=r"'b\.bmp' and 'b\.gif' would both be written to 'b\.png'"):
        find_pending(job_of(folder))


def test_a_name_that_is_no_text_fails_by_itself(folder: Path) -> None:
    (folder / os.fsdecode(b"\xff.png")).touch()
    pending = find_pending(job_of(folder))
    assert len(pending.names) == 3
    assert [(row["name"], row["code"]) for row in pending.failed] == [("\udcff.png", "invalid_params")]


def test_an_empty_source(tmp_path: Path) -> None:
    with pytest.raises(InvalidParamsError, match="no images found"):
        find_pending(DatasetJob(str(tmp_path / "nothing"), str(tmp_path / "out"), "model"))


def test_sizes_of_blocks() -> None:
    """All workers have work to the end; rows come back soon; there are never too many blocks."""
    assert block_size(1, 8) == 1
    assert block_size(200, 8) == 6
    assert block_size(100_000, 8) == MAX_BLOCK
    assert block_size(10_000_000, 8) == 1000 == 10_000_000 // MAX_BLOCKS


# --- a worker


@pytest.fixture
def worker(tmp_path: Path, micro: Engine, lend: Engine) -> Callable[..., Upscaler]:
    """worker(**settings of a job), on two good images and a corrupt one."""
    for i, name in enumerate(("a/1.png", "a/2.png")):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(np.roll(picture(8, 8), i, 0)))
    (tmp_path / "in" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return lambda **settings: Upscaler(job_of(tmp_path / "in", **settings))


NAMES = ["a/1.png", "bad.png", "gone.png", "a/2.png"]


def test_a_worker_answers_with_rows(worker: Callable[..., Upscaler], tmp_path: Path, micro: Engine) -> None:
    rows = worker(params=UpscaleParams(seed=5))({"name": np.array(NAMES)})
    assert rows["name"] == NAMES
    assert rows["status"] == ["written", "failed", "failed", "written"]
    assert rows["code"][::3] == ["", ""] and rows["code"][1] == "invalid_image"
    assert "gone.png" in rows["message"][2]
    assert rows["seed"] == [seed_of(5, name) for name in NAMES]
    assert files_in(tmp_path / "out") == ["a/1.png", "a/2.png"]
    alone = micro.upscale(tmp_path / "in" / "a/2.png", seed=seed_of(5, "a/2.png"))
    assert np.array_equal(pixels((tmp_path / "out" / "a/2.png").read_bytes()), alone.array)


def test_a_worker_keeps_what_an_earlier_try_wrote(worker: Callable[..., Upscaler], tmp_path: Path) -> None:
    worker()({"name": ["a/1.png"]})
    before = (tmp_path / "out" / "a/1.png").stat()
    assert worker()({"name": NAMES})["status"] == ["kept", "failed", "failed", "written"]
    assert (tmp_path / "out" / "a/1.png").stat().st_ino == before.st_ino
    assert worker(overwrite=True)({"name": ["a/1.png"]})["status"] == ["written"]
    assert (tmp_path / "out" / "a/1.png").stat().st_ino != before.st_ino


def test_a_folder_that_cannot_be_written_is_a_row(worker: Callable[..., Upscaler], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    rows = worker()({"name": ["a/1.png"]})
    assert rows["status"] == ["failed"] and rows["code"] == ["output_error"]


def test_a_model_that_is_not_there_fails_for_all(tmp_path: Path) -> None:
    job = DatasetJob(str(tmp_path), str(tmp_path / "out"), str(tmp_path / "no-model"))
    assert Upscaler(job)({"name": ["a.png", "b.png"]})["code"] == ["model_not_found"] * 2


# --- the command


class Quiet:
    """A bar that shows nothing."""

    def show(self) -> None: ...
    def say(self, text: str) -> None: ...


def rows_of(*outcomes: tuple[str, str]) -> list[Any]:
    return [{"name": "x", "status": status, "code": code, "message": f"{code} it is"} for status, code in outcomes]


def test_rows_are_counted() -> None:
    tally = command.Tally(4, 7)
    rows = rows_of(("written", ""), ("failed", "invalid_image"), ("kept", ""), ("failed", "invalid_params"))
    command.count(rows, tally, Quiet(), quiet=True)  # type: ignore[arg-type]
    counts = {"written": 2, "failed": 2, "skipped": 7, "interrupted": False}
    assert {name: tally.summary[name] for name in counts} == counts and tally.done == 4


@pytest.mark.parametrize(
    ("code", "kind"), [("invalid_params", InvalidParamsError), ("model_not_found", ModelNotFoundError)]
)
def test_what_is_wrong_for_all_images_ends_the_run(code: str, kind: type[VarsrError]) -> None:
    with pytest.raises(kind, match=f"{code} it is"):
        command.count(rows_of(("failed", code)), command.Tally(9, 0), Quiet(), quiet=True)  # type: ignore[arg-type]


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fake(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError("No module named 'ray'", name="ray")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(InvalidParamsError, match=r"needs ray: pip install 'varsr-engine\[ray\]'"):
        command.require_ray()


def test_parameters_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "params.toml"
    file.write_text("steps = 4\nseed = 1\n")
    assert params_of(file, seed=2, scale=None) == UpscaleParams(steps=4, seed=2)
    file.write_text("stepz = 4")
    with pytest.raises(InvalidParamsError, match="steps"):
        params_of(file)
    file.write_text("=")
    with pytest.raises(InvalidParamsError, match="not valid TOML"):
        params_of(file)
    with pytest.raises(InvalidParamsError, match="cannot be read"):
        params_of(tmp_path / "none.toml")


class StubDataset:
    """Notes how it was made."""

    def __init__(self, items: list[Any], override_num_blocks: int) -> None:
        self.items, self.blocks = items, override_num_blocks
        self.context = type("Context", (), {})()

    def map_batches(self, function: Any, **options: Any) -> StubDataset:
        self.function, self.options = function, options
        return self


def test_how_ray_data_is_asked(folder: Path, stub_modules: Callable[..., ModuleType]) -> None:
    stub_modules("ray.data", from_items=StubDataset, ActorPoolStrategy=dict)
    job = job_of(folder)
    made: Any = ray_data.dataset(job, ["a", "b", "c"], workers=2, num_cpus=2, images_per_block=2)
    assert made.items == [{"name": "a"}, {"name": "b"}, {"name": "c"}] and made.blocks == 2
    options = made.options
    assert options["compute"] == {"min_size": 1, "max_size": 2, "initial_size": 2}
    assert options["runtime_env"] == {"env_vars": {"OMP_NUM_THREADS": "2"}}
    (sent,) = options["fn_constructor_args"]
    assert (sent.config.device, sent.config.numerics) == ("cpu", "batch_invariant")
    on_gpu: Any = ray_data.dataset(job, ["a"], workers=1, num_gpus=1)
    assert on_gpu.options["fn_constructor_args"] == (job,) and on_gpu.options["num_gpus"] == 1


# --- Ray Serve


def test_arguments_as_typed() -> None:
    args = RayServeArgs.model_validate({"model": "m", "num_replicas": "2", "num_gpus": "0.5", "insecure": "true"})
    assert (args.num_replicas, args.num_gpus, args.insecure) == (2, 0.5, True)
    assert RayServeArgs.model_validate({"num_replicas": "auto"}).num_replicas == "auto"
    for wrong in ({"replicas": "2"}, {"num_replicas": "many"}, {"num_cpus": "0"}):
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            RayServeArgs.model_validate(wrong)


def test_the_settings_of_a_deployment() -> None:
    fixed = RayServeArgs(num_replicas=2, num_cpus=3, max_batch=4).deployment(ServerSettings(drain_timeout=7))
    assert (fixed["num_replicas"], fixed["max_ongoing_requests"], fixed["max_queued_requests"]) == (2, 12, 16)
    assert fixed["graceful_shutdown_timeout_s"] == 7 and "autoscaling_config" not in fixed
    assert fixed["ray_actor_options"]["runtime_env"] == {"env_vars": {"OMP_NUM_THREADS": "3"}}
    auto = RayServeArgs(num_replicas="auto", max_replicas=5).deployment(ServerSettings())["autoscaling_config"]
    assert (auto["min_replicas"], auto["max_replicas"], auto["target_ongoing_requests"]) == (1, 5, 8)


def test_the_engine_of_a_replica() -> None:
    config = RayServeArgs().engine_config()
    assert (config.device, config.numerics) == ("cpu", "batch_invariant")
    assert RayServeArgs(numerics="fast").engine_config().numerics == "fast"
    config = RayServeArgs(num_gpus=1).engine_config()
    assert (config.device, config.numerics) == ("auto", "fast")


def test_other_machines_need_a_key(tmp_path: Path) -> None:
    with pytest.raises(InvalidParamsError, match="lets other machines in"):
        RayServeArgs(host="0.0.0.0").server_settings()
    (tmp_path / "keys").write_text("a-long-key\n")
    settings = RayServeArgs(host="0.0.0.0", api_key_file=str(tmp_path / "keys")).server_settings()
    assert settings.api_keys == ("a-long-key",)
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_there_are_no_jobs() -> None:
    jobs = NoJobs(ServerSettings())
    with pytest.raises(NotFoundError, match="upscale-dataset"):
        jobs.get("x")
    with pytest.raises(NotFoundError):
        jobs.remove("x")


def test_the_application_that_is_built(stub_modules: Callable[..., ModuleType]) -> None:
    """deployment(ingress()(Replica)).options(...).bind(model, config, settings)."""

    class Deployment:
        def __init__(self, made: Any, name: str) -> None:
            assert made is Replica and name == "varsr"

        def options(self, **options: Any) -> Deployment:
            self.given = options
            return self

        def bind(self, *bound: Any) -> Any:
            return self.given, bound

    ray = stub_modules("ray")
    ray.serve = stub_modules("ray.serve", deployment=Deployment, ingress=lambda: lambda cls: cls)  # type: ignore[attr-defined]
    options, (model, config, settings) = build_app(RayServeArgs(model="m", num_replicas=2))  # type: ignore[misc]
    assert options["num_replicas"] == 2 and model == "m"
    assert isinstance(config, EngineConfig) and isinstance(settings, ServerSettings)


def test_a_replica_that_cannot_answer_says_so(lend: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    replica = Replica("model", EngineConfig(), ServerSettings())
    replica.check_health()
    health = type("Health", (), {"ok": False, "state": "dead", "reason": "the device was lost"})
    monkeypatch.setattr(lend, "health", lambda: health)
    with pytest.raises(EngineDeadError, match="dead: the device was lost"):
        replica.check_health()
    replica._service.close()


# --- the client


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[str, list[Any]]]]:
    """server(answer, answer, ...): answers (status, body, headers), the last for ever; gives its URL and requests."""
    monkeypatch.setattr(client_module, "FIRST_PAUSE", 0.001)
    running: list[HTTPServer] = []

    def start(*answers: Any) -> tuple[str, list[Any]]:
        seen: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                seen.append((self.path, self.headers["authorization"], body))
                answer = answers[min(len(seen), len(answers)) - 1]
                if answer is None:
                    return self.connection.close()  # a process that died
                status, data, headers = answer
                self.send_response(status)
                for name, value in (headers | {"content-length": str(len(data))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None: ...

        http = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        running.append(http)
        return f"http://127.0.0.1:{http.server_port}", seen

    yield start
    for http in running:
        http.shutdown()
        http.server_close()


def told(code: str) -> bytes:
    return b'{"error": {"message": "so it is", "type": "t", "code": "%s", "param": null}}' % code.encode()


OK = (200, b"image", {})


def test_the_client_sends_what_the_route_takes(server: Any) -> None:
    url, seen = server(OK)
    assert Client(url, api_key="a-long-key").upscale(b"data", seed=3, format="webp") == b"image"
    assert seen == [("/v1/upscale?seed=3&format=webp", "Bearer a-long-key", b"data")]


@pytest.mark.parametrize(
    "answer",
    [
        (429, told("queue_full"), {"retry-after": "0"}),
        (503, told("draining"), {}),
        (503, b"Request dropped due to backpressure", {}),
        (502, b"<html>", {}),
        (500, b"Internal Server Error", {}),
        None,
    ],
)
def test_the_client_tries_again(server: Any, answer: Any) -> None:
    url, seen = server(answer, answer, OK)
    assert Client(url).upscale(b"data", seed=3) == b"image"
    assert len(seen) == 3 and len(set(seen)) == 1


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_image", InvalidImageError),
        (422, "invalid_params", InvalidParamsError),
        (500, "internal", VarsrError),
        (404, "not_found", NotFoundError),
    ],
)
def test_the_servers_own_word_is_final(server: Any, status: int, code: str, kind: type[VarsrError]) -> None:
    url, seen = server((status, told(code), {}))
    with pytest.raises(kind, match="so it is") as caught:
        Client(url).upscale(b"data")
    assert type(caught.value) is kind and len(seen) == 1


def test_the_client_gives_up(server: Any) -> None:
    url, seen = server((429, told("queue_full"), {}))
    with pytest.raises(QueueFullError):
        Client(url, attempts=3).upscale(b"data")
    assert len(seen) == 3
    with pytest.raises(UnreachableError, match="answered 500"):
        Client(server((500, b"", {}))[0], attempts=2).upscale(b"data")


def test_the_client_goes_on_to_the_next_server(server: Any) -> None:
    dead = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    dead.server_close()
    url, seen = server(OK)
    assert Client(f"http://127.0.0.1:{dead.server_port}", url).upscale(b"data") == b"image"
    assert len(seen) == 1
    with pytest.raises(UnreachableError, match="does not answer"):
        Client(f"http://127.0.0.1:{dead.server_port}", attempts=2).upscale(b"data")


def test_pauses_grow_and_follow_the_server() -> None:
    plain = UnreachableError("")
    assert all(0.05 <= pause(1, plain) <= 0.1 and 0.4 <= pause(4, plain) <= 0.8 for _ in range(20))
    assert pause(30, plain) <= 10
    assert 3 <= pause(1, QueueFullError("", retry_after_s=3)) <= 3.6
    assert pause(1, QueueFullError("", retry_after_s=3600)) <= 12


def test_urls_are_checked() -> None:
    for url in ("127.0.0.1:8000", "ftp://a", "http://"):
        with pytest.raises(InvalidParamsError, match="url must be"):
            Client(url)
    with pytest.raises(InvalidParamsError, match="at least one"):
        Client()


# --- docs/ray.md

TEXT = (Path(__file__).parents[2] / "docs" / "ray.md").read_text()


def test_the_documented_arguments() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", TEXT, re.MULTILINE)
    assert rows == [(name, repr(field.default)) for name, field in RayServeArgs.model_fields.items()]


def test_the_documented_packages() -> None:
    pins = (Path(__file__).parents[2] / "constraints-ray.txt").read_text().splitlines()
    names = [line.partition("==")[0] for line in pins if not line.startswith("#")]
    assert f"{len(names)} packages, none of which is torch" in " ".join(TEXT.split())
    assert "torch" not in names


def test_what_ray_prints_is_no_answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its messages come when they like, and stdout is for --json."""

    def said(*args: object, **kwargs: object) -> None:
        print("(raylet) a message")

    stub = SimpleNamespace(is_initialized=lambda: False, init=said, shutdown=said)
    monkeypatch.setitem(sys.modules, "ray", stub)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with command.cluster(None):
        print("(raylet) another")
    print("{}")
    out, err = capsys.readouterr()
    assert out == "{}\n" and err.count("(raylet)") == 3
