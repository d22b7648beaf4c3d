"""Hundreds of requests that mean harm: each is refused as the table says, at once, and the server is as it was."""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.conftest import Running, running
from tests.serving.hostile import CLOSED, MAX_BODY, PAUSE, Case, cases
from tests.serving.test_upscale import eventually
from varsr_engine.engine.engine import Engine

CASES = list(cases())
PATIENCE = 0.25  # the server's with bodies and heads
AT_ONCE = 1.0  # seconds
MORE_MEMORY = 300 * 1024**2


@pytest.fixture(scope="module")
def target(engine: Engine) -> Iterator[Running]:
    settings = {"max_body_bytes": MAX_BODY, "body_grace": PATIENCE, "header_timeout": PATIENCE, "max_jobs": 1000}
    with running(engine, **settings) as server:
        yield server


def exchange(port: int, case: Case) -> tuple[int, dict[str, str], bytes, float]:
    """Send a case: status, headers and body of the answer, and the seconds that it took."""
    start = time.monotonic()
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        for piece in case.pieces:
            if piece is PAUSE:
                time.sleep(PATIENCE / 4)
                continue
            try:
                sock.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break
        try:
            while b"\r\n\r\n" not in received or not _whole(received):
                more = sock.recv(65536)
                if not more:
                    break
                received += more
        except (ConnectionResetError, TimeoutError):
            pass
    seconds = time.monotonic() - start
    head, _, body = received.partition(b"\r\n\r\n")
    if not head:
        return CLOSED, {}, b"", seconds
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = int(headers.get("content-length", len(body)))  # beyond it: the answer to what follows the request
    return int(first.split()[1]), headers, body[:length], seconds


def _whole(answer: bytes) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    for line in head.decode("latin-1").lower().split("\r\n"):
        if line.startswith("content-length:"):
            return len(body) >= int(line.partition(":")[2])
    return False


def test_the_corpus_is_large_and_has_no_doubles() -> None:
    assert len(CASES) >= 200 and len({case.name for case in CASES}) == len(CASES)


def test_each_is_refused_as_the_table_says(target: Running, photo: bytes, capsys: Any) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    limit = AT_ONCE * max(1.0, os.getloadavg()[0])  # a machine that is busy otherwise is no fault of the server
    counts: dict[int, int] = {}
    slowest, wrong = 0.0, []
    for case in CASES:
        for _ in range(3):  # a machine that is busy with something else is no fault of the server
            status, headers, body, seconds = exchange(target.port, case)
            if seconds < limit:
                break
        counts[status] = counts.get(status, 0) + 1
        slowest = max(slowest, seconds)
        if status not in case.expected or seconds >= limit or "x-evil" in headers:
            wrong.append((case.name, status, sorted(case.expected), round(seconds, 2), body[:200]))
        elif status >= 400 and headers["content-type"] == "application/json":
            error = json.loads(body)["error"]
            assert error["message"] and error["type"] and error["code"], case.name
            assert "Traceback" not in body.decode() and "/work" not in body.decode(), case.name
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    with capsys.disabled():
        print(
            f"\n{len(CASES)} hostile requests, answers {dict(sorted(counts.items()))}, slowest {slowest:.2f} s, "
            f"{more / 1e6:.0f} MB more at the peak"
        )
    assert not wrong
    assert more < MORE_MEMORY
    assert eventually(lambda: target.service.in_flight == 0)
    assert eventually(lambda: set(target.service.jobs.counts()) and target.service.budget.held == 0)
    assert target.upscale(photo).status_code == 200
