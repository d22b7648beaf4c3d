"""What watches and guards a server: health, readiness, drain, keys, origins, metrics, logs, documents."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.engine.test_tiling import engine_of
from tests.serving.conftest import Running, running
from tests.serving.test_upscale import Slow, eventually
from varsr_engine import errors
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.params import UpscaleParams
from varsr_engine.errors import ModelNotFoundError
from varsr_engine.serving.lifecycle import Lifecycle
from varsr_engine.serving.params import PARAM_NAMES, UpscaleSettings
from varsr_engine.serving.routes_page import page_router

KEY = "a-long-secret"


def state(server: Running, path: str) -> tuple[int, str]:
    answer = server.client.get(path)
    return answer.status_code, answer.json()["state"]


def test_ready_only_after_the_warm_up(serving: Any, photo: bytes) -> None:
    load, warm = threading.Event(), threading.Event()
    engine = engine_of()
    warmup = engine.warmup

    def waiting() -> Engine:
        load.wait(30)
        return engine

    def slow_warmup() -> None:
        warm.wait(30)
        warmup()

    engine.warmup = slow_warmup  # type: ignore[method-assign]
    with serving(Lifecycle(waiting)) as server:
        for release, name in ((load, "loading"), (warm, "warming")):
            assert eventually(lambda name=name: state(server, "/healthz") == (200, name))
            assert state(server, "/readyz") == (503, name)
            refused = server.upscale(photo)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
            assert refused.headers["retry-after"] == "5"
            assert server.client.get("/metrics").status_code == 200
            release.set()
        assert eventually(lambda: state(server, "/readyz") == (200, "ready"))
        assert server.upscale(photo).status_code == 200
    assert engine.health().state == "closed"


def test_a_model_that_does_not_load_ends_the_server(serving: Any) -> None:
    def load() -> Engine:
        raise ModelNotFoundError("no model at /secret/path")

    lifecycle = Lifecycle(load)
    with serving(lifecycle) as server:
        assert eventually(lambda: lifecycle.state == "failed")
        assert eventually(lambda: not server.thread.is_alive()), "the server goes on without a model"
    assert isinstance(lifecycle.error, ModelNotFoundError)


def test_drain(serving: Any, photo: bytes) -> None:
    """What is in flight is answered; what comes then is refused; then the server ends."""
    engine = engine_of()
    slow = Slow(engine)
    with serving(engine) as server, ThreadPoolExecutor(4) as pool:
        taken = [pool.submit(server.upscale, photo, f"?seed={n}") for n in range(4)]
        assert eventually(lambda: engine.stats().queued_units == 4)
        server.service.drain()
        assert state(server, "/readyz") == (503, "draining") and state(server, "/healthz") == (200, "draining")
        refused = server.upscale(photo)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert "retry-after" in refused.headers
        assert not server.service.drained
        slow.release.set()
        assert [job.result().status_code for job in taken] == [200] * 4
        assert eventually(lambda: server.service.drained)
    engine.close()


def test_a_dead_engine(serving: Any, photo: bytes) -> None:
    engine = engine_of()
    with serving(engine) as server:
        server.upscale(photo)
        engine.close()
        assert state(server, "/healthz") == (503, "closed")
        assert state(server, "/readyz")[0] == 503
        assert server.upscale(photo).json()["error"]["code"] == "draining"


def test_faults_tell_nothing(serving: Any, photo: bytes, caplog: pytest.LogCaptureFixture) -> None:
    engine = engine_of()

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("at /secret/path")

    engine.submit = broken  # type: ignore[method-assign]
    with serving(engine) as server:
        for accept in ("image/png", "text/event-stream"):
            answer = server.upscale(photo, accept=accept, x_request_id="find-me")
            assert answer.status_code == 500
            error = answer.json()["error"]
            assert error["code"] == "internal" and "find-me" in error["message"] and "secret" not in answer.text
    assert "/secret/path" in caplog.text


@pytest.mark.parametrize("authorization", [None, "", "Bearer", f"Basic {KEY}", "Bearer wrong", f"Bearer {KEY}x", KEY])
def test_wrong_keys(keyed: Running, photo: bytes, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    for path in ("/v1/models", "/metrics", "/version", "/openapi.json", "/nowhere", "/v1/jobs/x"):
        answer = keyed.client.get(path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert keyed.upscale(photo, **headers).status_code == 401


def test_right_keys(keyed: Running, photo: bytes) -> None:
    for key in (KEY, "another-secret"):
        assert keyed.upscale(photo, authorization=f"Bearer {key}").status_code == 200
    assert keyed.client.get("/healthz").status_code == keyed.client.get("/readyz").status_code == 200


@pytest.fixture(scope="module")
def keyed(engine: Engine) -> Any:
    with running(engine, api_keys=(KEY, "another-secret")) as server:
        yield server


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[broken"}, 403),
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example", "origin": "http://evil.example"}, 403),
        ({"host": "localhost", "origin": "http://localhost"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({}, 200),
    ],
)
def test_pages_of_other_origins(server: Running, headers: dict[str, str], status: int) -> None:
    assert server.client.get("/v1/models", headers=headers).status_code == status


def test_cors_is_off_unless_asked_for(serving: Any, server: Running, engine: Engine) -> None:
    ask = {"origin": "http://app.example", "access-control-request-method": "POST"}
    off = server.client.options("/v1/upscale", headers=ask)
    assert "access-control-allow-origin" not in off.headers
    with serving(engine, cors_origins=("http://app.example",)) as other:
        on = other.client.options("/v1/upscale", headers=ask)
        assert on.headers["access-control-allow-origin"] == "http://app.example"
        assert other.client.get("/v1/models", headers={"origin": "http://app.example"}).status_code == 200
        assert other.client.get("/v1/models", headers={"origin": "http://b.example"}).status_code == 403


def test_too_many_requests(serving: Any, photo: bytes) -> None:
    engine = engine_of()
    slow = Slow(engine)
    with serving(engine, max_requests=2) as server, ThreadPoolExecutor(2) as pool:
        taken = [pool.submit(server.upscale, photo) for _ in range(2)]
        assert eventually(lambda: server.service.in_flight == 2)
        refused = server.upscale(photo)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "server_busy")
        assert server.client.get("/readyz").status_code == 200
        slow.release.set()
        assert [job.result().status_code for job in taken] == [200, 200]
    engine.close()


def test_memory_budget(serving: Any, photo: bytes) -> None:
    """Pictures of several requests are counted together; one alone may exceed the budget."""
    engine = engine_of()
    slow = Slow(engine)
    with serving(engine, max_held_bytes=1) as server, ThreadPoolExecutor(1) as pool:
        taken = pool.submit(server.upscale, photo)
        assert eventually(lambda: engine.stats().queued_units == 1)
        refused = server.upscale(photo)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "server_busy")
        slow.release.set()
        assert taken.result().status_code == 200
        assert eventually(lambda: server.service.budget.held == 0)
    engine.close()


def test_metrics(serving: Any, engine: Engine, photo: bytes) -> None:
    with serving(engine) as server:
        server.upscale(photo)
        server.upscale(photo, accept="text/event-stream")
        server.upscale(b"")
        server.client.get("/no/such/path")
        text = server.client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['varsr_requests_total{code="ok",route="/v1/upscale"}'] == "2.0"
    assert lines['varsr_requests_total{code="invalid_image",route="/v1/upscale"}'] == "1.0"
    assert lines['varsr_requests_total{code="not_found",route="unmatched"}'] == "1.0"
    assert float(lines["varsr_output_megapixels_total"]) == pytest.approx(2 * 32 * 32 / 1e6)
    assert lines["varsr_time_to_first_preview_seconds_count"] == "1.0"
    assert float(lines['varsr_batch_rows_bucket{le="+Inf"}']) >= 2
    for name in ("queue_seconds_count", "model_seconds_count", "encode_seconds_count", "queue_units", "tiles_total"):
        assert f"varsr_{name}" in lines
    assert any(line.startswith("varsr_build_info{") for line in lines)


def test_one_log_line_a_request_without_content(
    server: Running, photo: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "varsr_engine.serving.access"):
        server.client.post(
            "/v1/images/edits",
            files={"image": ("holiday.png", photo, "image/png")},
            data={"prompt": "private words", "seed": "9"},
            headers={"x-request-id": "bad id\twith tab"},
        )
        assert eventually(lambda: bool(caplog.messages))
    (line,) = caplog.messages
    entry = json.loads(line)
    assert (entry["route"], entry["status"], entry["code"], entry["seed"]) == ("/v1/images/edits", 200, "ok", 9)
    assert (entry["size"], entry["output"], entry["tiles"]) == ([8, 8], [32, 32], 1)
    assert entry["bytes_in"] > len(photo) and entry["model_ms"] > 0 and "bad id" not in line
    assert "holiday" not in line and "private" not in line


def test_models_and_version(server: Running, engine: Engine) -> None:
    (model,) = server.client.get("/v1/models").json()["data"]
    assert model == server.client.get("/v1/models/micro").json()
    assert (model["id"], model["scales"], model["tile"]) == ("micro", [1, 2, 4, 8], 32)
    assert model["fingerprint"] == engine.fingerprint
    assert model["limits"]["max_side"] == server.service.settings.max_side
    assert server.client.get("/v1/models/other").status_code == 404


def test_security_headers_on_every_answer(server: Running, photo: bytes) -> None:
    answers = [server.upscale(photo), server.upscale(b""), *(server.client.get(p) for p in ("/", "/x", "/healthz"))]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "server" not in answer.headers and answer.headers["x-request-id"]


def test_methods_and_paths(server: Running) -> None:
    wrong = server.client.get("/v1/upscale")
    assert (wrong.status_code, wrong.headers["allow"], wrong.json()["error"]["code"]) == (
        405,
        "POST",
        "method_not_allowed",
    )
    assert server.client.put("/v1/jobs/x").headers["allow"] == "DELETE, GET"
    assert server.client.post("/").headers["allow"] == "GET"
    for path in ("/v1/upscale/", "/docs", "/redoc", "/static/../app.py", "/static/%2e%2e%2fapp.py", "/.env"):
        assert server.client.get(path).json()["error"]["code"] == "not_found"


def test_the_page(serving: Any, engine: Engine, tmp_path: Any) -> None:
    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "app.js").write_text("1")
    (tmp_path / "secret.py").write_text("1")
    routes = {route.path for route in page_router(tmp_path).routes}  # type: ignore[attr-defined]
    assert routes == {"/", "/static/{name}"}
    app = FastAPI()
    app.include_router(page_router(tmp_path))

    async def get(path: str) -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.get(path)

    index, script = asyncio.run(get("/")), asyncio.run(get("/static/app.js"))
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    with pytest.raises(errors.VarsrError):
        asyncio.run(get("/static/secret.py"))


def test_no_setting_of_the_engine_is_forgotten() -> None:
    assert set(UpscaleSettings.model_fields) - {"timeout_s", "quality"} == PARAM_NAMES
    assert UpscaleSettings().params() == UpscaleParams()


def test_spans(serving: Any, server: Running, photo: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the API alone: a provider that the process sets sees ours, and none of FastAPI's own."""
    trace = pytest.importorskip("opentelemetry.trace")
    names: list[str] = []

    class Tracer(trace.NoOpTracer):
        def start_as_current_span(self, name: str, *arguments: Any, **settings: Any) -> Any:
            names.append(name)
            return super().start_as_current_span(name, *arguments, **settings)

        def start_span(self, name: str, *arguments: Any, **settings: Any) -> Any:
            names.append(name)
            return super().start_span(name, *arguments, **settings)

    class Provider(trace.TracerProvider):
        def get_tracer(self, *_: Any, **__: Any) -> Any:
            return Tracer()

    monkeypatch.setattr(trace, "get_tracer", lambda *_, **__: Tracer())
    monkeypatch.setattr(trace, "get_tracer_provider", Provider)
    server.upscale(photo)
    assert eventually(lambda: server.service.in_flight == 0)
    assert sorted(set(names)) == ["varsr.decode", "varsr.encode", "varsr.request", "varsr.upscale"]
