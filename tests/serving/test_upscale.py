"""POST /v1/upscale: the engine's own pixels, whatever the way."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.engine.test_tiling import engine_of, picture
from tests.serving.conftest import Running
from tests.serving.images import encoded, pixels, png
from varsr_engine.engine.engine import Engine


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    blocks = [block for block in text.split("\n\n") if block.startswith("event: ")]
    return [(name[7:], json.loads(data[6:])) for name, data in (block.split("\n") for block in blocks)]


def test_same_bytes_as_offline(server: Running, engine: Engine, photo: bytes) -> None:
    answer = server.upscale(photo, "?seed=3&scale=2", x_request_id="mine-1")
    expected = engine.upscale(photo, seed=3, scale=2).encode("PNG")
    assert (answer.status_code, answer.content) == (200, expected)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-seed"] == "3" and answer.headers["x-request-id"] == "mine-1"
    assert float(answer.headers["x-model-ms"]) > 0 and float(answer.headers["x-queue-ms"]) >= 0
    assert answer.headers["etag"] == server.upscale(photo, "?seed=3&scale=2").headers["etag"]


def test_every_setting_reaches_the_engine(server: Running, engine: Engine) -> None:
    source = png(picture(20, 13, channels=4))
    query = (
        "?longest_side=50&seed=5&cfg=1.5&label=1&top_k=3&top_p=0.9&temperature=0.8&steps=3&refiner_temperature=0.5"
        "&color_fix=wavelet&fidelity=0.25&alpha=drop&tile_overlap=1&refiner=on&tile=auto"
    )
    expected = engine.upscale(
        source,
        longest_side=50,
        seed=5,
        cfg=1.5,
        label=1,
        top_k=3,
        top_p=0.9,
        temperature=0.8,
        steps=3,
        refiner_temperature=0.5,
        color_fix="wavelet",
        fidelity=0.25,
        alpha="drop",
        tile_overlap=1,
    )
    assert server.upscale(source, query).content == expected.encode("PNG")


def test_a_random_seed_is_told_and_reproduces(server: Running, photo: bytes) -> None:
    first = server.upscale(photo, "?seed=random")
    again = server.upscale(photo, f"?seed={first.headers['x-seed']}")
    assert first.content == again.content
    assert server.upscale(photo, "?seed=random").headers["x-seed"] != first.headers["x-seed"]


@pytest.mark.parametrize(
    ("accept", "query", "media"),
    [
        ("*/*", "", "image/png"),
        ("image/*", "", "image/png"),
        ("image/webp", "", "image/webp"),
        ("text/html, image/jpeg;q=0.5, image/webp;q=0.4", "", "image/jpeg"),
        ("image/png;q=0, image/*", "", "image/jpeg"),
        ("*/*", "?format=webp&quality=50", "image/webp"),
    ],
)
def test_formats(server: Running, engine: Engine, photo: bytes, accept: str, query: str, media: str) -> None:
    answer = server.upscale(photo, query, accept=accept)
    quality = 50 if query else 95
    assert answer.headers["content-type"] == media
    assert answer.content == engine.upscale(photo).encode(media.removeprefix("image/").upper(), quality=quality)


@pytest.mark.parametrize(("accept", "query"), [("text/html", ""), ("image/avif", ""), ("image/png", "?format=jpeg")])
def test_nothing_acceptable(server: Running, photo: bytes, accept: str, query: str) -> None:
    answer = server.upscale(photo, query, accept=accept)
    assert (answer.status_code, answer.json()["error"]["code"]) == (406, "not_acceptable")


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_input_formats(server: Running, engine: Engine, format: str) -> None:
    data = encoded(picture(9, 7), format)
    answer = server.upscale(data, content_type=f"image/{format.lower()}")
    assert answer.content == engine.upscale(data).encode("PNG")


def test_events(server: Running, engine: Engine) -> None:
    """Stages of every tile with previews, then the result that a plain request gets."""
    source = png(picture(20, 13))
    answer = server.upscale(source, "?seed=2", accept="text/event-stream")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_of(answer.text)
    names = [name for name, _ in events]
    assert names[0] == "accepted" and names[-1] == "result" and set(names[1:-1]) == {"progress", "preview"}
    assert events[0][1]["tiles"] == 6 and events[0][1]["size"] == [80, 52]
    result = events[-1][1]
    assert base64.b64decode(result["image"]) == engine.upscale(source, seed=2).encode("PNG")
    assert (result["seed"], result["size"], result["tiles"]) == (2, [80, 52], 6)
    previews = [event for name, event in events if name == "preview"]
    assert all(pixels(base64.b64decode(event["image"])).shape == (52, 80, 3) for event in previews)
    assert "preview" not in [
        n for n, _ in events_of(server.upscale(source, "?previews=none", accept="text/event-stream").text)
    ]


def test_errors_before_the_first_event_have_their_status(server: Running) -> None:
    answer = server.upscale(b"no image", accept="text/event-stream")
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_format")


def test_many_at_once_are_each_right(server: Running, engine: Engine) -> None:
    sources = [png(picture(8 + n % 3, 8, seed=n)) for n in range(6)]
    expected = [engine.upscale(source, seed=n).encode("PNG") for n, source in enumerate(sources)]
    with ThreadPoolExecutor(12) as pool:
        jobs = [pool.submit(server.upscale, sources[n % 6], f"?seed={n % 6}") for n in range(12)]
        for n, job in enumerate(jobs):
            assert job.result().content == expected[n % 6]


class Slow:
    """Makes an engine's batches wait for `release`."""

    def __init__(self, engine: Engine) -> None:
        self.release, self.running = threading.Event(), threading.Event()
        run = engine.run_tiles

        def waiting(*arguments: Any, **settings: Any) -> Any:
            self.running.set()
            self.release.wait(30)
            return run(*arguments, **settings)

        engine.run_tiles = waiting  # type: ignore[method-assign]


def eventually(condition: Any, seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_a_full_queue_is_a_429(serving: Any, photo: bytes) -> None:
    engine = engine_of(max_queued_tiles=2, batch_size=1)
    slow = Slow(engine)
    with serving(engine) as server, ThreadPoolExecutor(2) as pool:
        taken = [pool.submit(server.upscale, photo) for _ in range(2)]
        assert eventually(lambda: engine.stats().queued_units == 2)
        refused = server.upscale(photo)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        slow.release.set()
        assert [job.result().status_code for job in taken] == [200, 200]
    engine.close()


def test_a_request_whose_time_is_up_is_a_504(serving: Any, photo: bytes) -> None:
    engine = engine_of()
    slow = Slow(engine)
    with serving(engine) as server:
        start = time.monotonic()
        late = server.upscale(photo, "?timeout_s=1")
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert time.monotonic() - start < 5
        text = server.upscale(photo, "?timeout_s=1", accept="text/event-stream").text
        assert events_of(text)[-1][1]["error"]["code"] == "deadline_exceeded"
        assert ": ping" in text
        slow.release.set()
    engine.close()


@pytest.mark.parametrize("accept", ["image/png", "text/event-stream"])
def test_a_client_that_leaves_cancels_its_request(serving: Any, photo: bytes, accept: str) -> None:
    engine = engine_of(batch_size=1)
    slow = Slow(engine)
    with serving(engine) as server:
        with sent(server, photo, accept):
            assert slow.running.wait(10)
        assert eventually(lambda: engine.stats().cancelled == 1)
        slow.release.set()
        assert eventually(lambda: server.service.in_flight == 0)
        assert server.service.budget.held == 0
        assert server.upscale(photo).status_code == 200
    engine.close()


@contextlib.contextmanager
def sent(server: Running, data: bytes, accept: str) -> Iterator[None]:
    """A connection that sends a request, and is closed at the end of the block without reading."""
    head = [
        "POST /v1/upscale HTTP/1.1",
        "Host: localhost",
        f"Accept: {accept}",
        "Content-Type: image/png",
        f"Content-Length: {len(data)}",
    ]
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall("\r\n".join([*head, "", ""]).encode() + data)
        yield


def test_nothing_is_held_afterwards(server: Running) -> None:
    assert eventually(lambda: server.service.in_flight == 0)
    assert server.service.budget.held == 0
