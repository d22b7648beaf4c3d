"""/v1/jobs: from the image to its file, and everything gone afterwards."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.engine.test_tiling import engine_of, picture
from tests.serving.conftest import Running
from tests.serving.images import encoded, png
from tests.serving.test_upscale import eventually
from varsr_engine.engine.engine import Engine
from varsr_engine.serving.job_folder import JUST_MADE, LOCK, PREFIX, JobFolder, delete_abandoned

HEADERS = {"content-type": "image/png"}


def create(server: Running, data: bytes, query: str = "") -> Any:
    return server.client.post(f"/v1/jobs{query}", content=data, headers=HEADERS)


def finished(server: Running, location: str) -> dict[str, Any]:
    body: dict[str, Any] = {}

    def done() -> bool:
        body.update(server.client.get(location).json())
        return body["status"] in ("succeeded", "failed")

    assert eventually(done, 30)
    return body


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_a_job(server: Running, engine: Engine, tmp_path: Path, format: str) -> None:
    source = png(picture(20, 13))
    answer = create(server, source, f"?seed=3&format={format}&quality=80")
    body, location = answer.json(), answer.headers["location"]
    assert answer.status_code == 202 and location == f"/v1/jobs/{body['id']}"
    assert (body["tiles"], body["size"], body["source_size"]) == (6, [80, 52], [20, 13])
    body = finished(server, location)
    assert (body["status"], body["tiles_done"], body["seed"], body["error"]) == ("succeeded", 6, 3, None)
    result = server.client.get(body["result"])
    engine.upscale_to(source, tmp_path / f"offline.{format}", seed=3, quality=80)
    assert result.headers["content-type"] == f"image/{format}"
    assert result.content == (tmp_path / f"offline.{format}").read_bytes()
    part = server.client.get(body["result"], headers={"range": "bytes=0-9"})
    assert (part.status_code, part.content) == (206, result.content[:10])
    assert server.client.delete(location).status_code == 204
    assert server.client.get(location).status_code == server.client.get(f"{location}/result").status_code == 404
    assert server.client.delete(location).json()["error"]["code"] == "not_found"


def test_a_picture_that_turns_out_corrupt(server: Running, photo: bytes) -> None:
    body = finished(server, create(server, photo[: len(photo) // 2]).headers["location"])
    assert (body["status"], body["error"]["code"], body["result"]) == ("failed", "invalid_image", None)
    answer = server.client.get(f"/v1/jobs/{body['id']}/result")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "job_not_done")


def test_what_is_wrong_at_first_sight_is_no_job(server: Running, photo: bytes) -> None:
    assert create(server, b"text").status_code == 415
    assert create(server, photo, "?scale=64&x=1").status_code == 422
    assert create(server, encoded(picture(9, 9), "BMP")).status_code == 415


def test_bounds_cancelling_and_the_end(serving: Any, photo: bytes, tmp_path: Path) -> None:
    """One runs, one waits, a third is refused; deleting ends them; nothing is left of the folder."""
    engine = engine_of()
    upscale_to, hold = engine.upscale_to, [True]

    def slow(*arguments: Any, on_stage: Any, **settings: Any) -> Any:
        def stage(name: str) -> None:
            while hold[0]:
                on_stage(name)
                time.sleep(0.01)
            on_stage(name)

        return upscale_to(*arguments, on_stage=stage, **settings)

    engine.upscale_to = slow  # type: ignore[method-assign]
    with serving(engine, max_jobs=2, job_folder=str(tmp_path)) as server:
        first, second = create(server, photo).headers["location"], create(server, photo).headers["location"]
        assert eventually(lambda: server.client.get(first).json()["status"] == "running")
        (folder,) = tmp_path.glob(f"{PREFIX}*")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        refused = create(server, photo)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "server_busy")
        assert int(refused.headers["retry-after"]) > 0
        assert server.service.budget.held > 0
        assert server.client.delete(first).status_code == 204
        assert eventually(lambda: server.client.get(second).json()["status"] == "running")
        assert server.client.delete(second).status_code == 204
        assert eventually(lambda: server.service.budget.held == 0)
        assert [path.name for path in folder.iterdir()] == [LOCK]
        third = create(server, photo).headers["location"]
        assert eventually(lambda: server.client.get(third).json()["status"] == "running")
    assert list(tmp_path.iterdir()) == []
    hold[0] = False
    engine.close()


def test_deleting_ends_the_decoding_too(serving: Any, tmp_path: Path) -> None:
    engine, decoding = engine_of(), threading.Event()
    upscale_to = engine.upscale_to

    def slow(*arguments: Any, on_rows: Any, **settings: Any) -> Any:
        def rows(done: int, total: int) -> None:
            decoding.set()
            while True:
                on_rows(done, total)
                time.sleep(0.01)

        return upscale_to(*arguments, on_rows=rows, **settings)

    engine.upscale_to = slow  # type: ignore[method-assign]
    with serving(engine, job_folder=str(tmp_path)) as server:
        job = create(server, encoded(picture(23, 17), "PNG")).headers["location"]
        assert decoding.wait(60)
        assert server.client.delete(job).status_code == 204
        assert eventually(lambda: server.service.budget.held == 0)
        assert list(tmp_path.glob(f"{PREFIX}*/*.png")) == []
    engine.close()


def test_old_results_go(serving: Any, engine: Engine, photo: bytes, tmp_path: Path) -> None:
    with serving(engine, max_finished_jobs=1, job_ttl=1.0, job_folder=str(tmp_path)) as server:
        first, second = (create(server, photo).headers["location"] for _ in range(2))
        finished(server, second)
        assert server.client.get(first).status_code == 404
        assert len(list(tmp_path.glob(f"{PREFIX}*/*.png"))) == 1
        assert eventually(lambda: server.client.get(second).status_code == 404)
        assert list(tmp_path.glob(f"{PREFIX}*/*.png")) == []


def test_folders_of_dead_servers(tmp_path: Path) -> None:
    alive = JobFolder(str(tmp_path))
    abandoned, new, foreign = (tmp_path / f"{PREFIX}{name}" for name in ("dead", "new", "link"))
    abandoned.mkdir()
    (abandoned / LOCK).touch()
    (abandoned / "half.png").write_bytes(b"half")
    new.mkdir()
    (tmp_path / "other").mkdir()
    foreign.symlink_to(tmp_path / "other")
    delete_abandoned(tmp_path)
    assert not abandoned.exists() and alive.path.exists() and new.exists() and (tmp_path / "other").exists()
    os.utime(new, (time.time() - 2 * JUST_MADE,) * 2)
    delete_abandoned(tmp_path)
    assert not new.exists()
    alive.delete()
    alive.delete()
    assert not alive.path.exists()
