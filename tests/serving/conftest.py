"""Real servers on a small engine: in a thread of this process, at a free port of this machine."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.engine.test_tiling import engine_of, picture
from tests.serving.images import png
from varsr_engine.engine.engine import Engine
from varsr_engine.serving.app import create_app
from varsr_engine.serving.lifecycle import Lifecycle
from varsr_engine.serving.server import DrainingServer, listen, server_config
from varsr_engine.serving.service import Service
from varsr_engine.serving.settings import ServerSettings


class Running:
    """A server that runs, and a client of it."""

    def __init__(self, service: Service, port: int) -> None:
        self.service, self.port = service, port
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)
        self.server: DrainingServer
        self.thread: threading.Thread

    def upscale(self, data: bytes, query: str = "", **headers: str) -> Any:
        given = {"content-type": "image/png"} | {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post(f"/v1/upscale{query}", content=data, headers=given)


@contextlib.contextmanager
def running(engine: Engine | Lifecycle, **settings: Any) -> Iterator[Running]:
    lifecycle = Lifecycle.of(engine) if isinstance(engine, Engine) else engine
    own = ServerSettings(**({"port": 0, "heartbeat": 0.2} | settings))
    service = Service(lifecycle, own)
    sock = listen(own)
    port = sock.getsockname()[1]  # a server that ends closes its socket
    server = DrainingServer(server_config(create_app(service), own), service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    started = time.monotonic()
    while not server.started:
        assert (thread.is_alive() or server.started) and time.monotonic() - started < 30
        time.sleep(0.005)
    run = Running(service, port)
    run.server, run.thread = server, thread
    try:
        yield run
    finally:
        run.client.close()
        server.should_exit = True
        thread.join(20)
        sock.close()
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    engine = engine_of(numerics="batch_invariant")
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def server(engine: Engine) -> Iterator[Running]:
    """One for all tests that change nothing of it."""
    with running(engine) as run:
        yield run


@pytest.fixture
def serving() -> Callable[..., contextlib.AbstractContextManager[Running]]:
    """running(engine, **settings): a server of one's own."""
    return running


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A PNG of one tile."""
    return png(picture(8, 8))
