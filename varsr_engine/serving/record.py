"""What is noted of a request while it is served, for its log line and the metrics. Nothing of its content."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

access = logging.getLogger("varsr_engine.serving.access")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class Record:
    """One request. Times are seconds; sizes are (width, height)."""

    request_id: str
    method: str
    start: float = field(default_factory=time.monotonic)
    route: str = "unmatched"
    status: int = 0
    code: str = "ok"
    seed: int | None = None
    size: tuple[int, int] | None = None
    output: tuple[int, int] | None = None
    tiles: int | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    queue: float | None = None
    model: float | None = None
    encode: float | None = None

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start

    def log(self) -> None:
        """The request's one line, as JSON."""
        line: dict[str, Any] = {
            "time": round(time.time(), 3),
            "request_id": self.request_id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "code": self.code,
            "ms": _ms(self.elapsed),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "seed": self.seed,
            "size": self.size,
            "output": self.output,
            "tiles": self.tiles,
            "queue_ms": _ms(self.queue),
            "model_ms": _ms(self.model),
            "encode_ms": _ms(self.encode),
        }
        access.info(json.dumps({name: value for name, value in line.items() if value is not None}))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def request_id(given: str | None) -> str:
    """The client's, where it is harmless in a header and a log, else a new one."""
    return given if given is not None and _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def record_of(request: Request) -> Record:
    """That of a request which came through the gate."""
    record: Record = request.scope[KEY]
    return record


KEY = "varsr.record"
