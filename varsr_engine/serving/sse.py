"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from varsr_engine.serving.disconnects import cancelled, disconnected

HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}  # no proxy shall collect events


def event(name: str, data: dict[str, Any]) -> bytes:
    """One event; its data is one line of JSON."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


class EventStream(Response):
    """An answer of events as they come, with a comment as a sign of life where none comes for `heartbeat` seconds.

    The generator is closed, and `on_close` called, whatever happens: at its end, when the client goes, or reads nothing
    for `write_timeout`.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        on_close: Callable[[], object],
        *,
        heartbeat: float,
        write_timeout: float,
    ) -> None:
        self._events, self._on_close = events, on_close
        self._heartbeat, self._write_timeout = heartbeat, write_timeout
        self.status_code, self.background = 200, None
        self.init_headers(HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(chunk: bytes, more: bool = True) -> None:
            message = {"type": "http.response.body", "body": chunk, "more_body": more}
            await asyncio.wait_for(send(message), self._write_timeout)

        gone = asyncio.ensure_future(disconnected(receive))
        coming: asyncio.Future[bytes] | None = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while True:
                coming = coming or asyncio.ensure_future(anext(self._events))
                news: set[asyncio.Future[Any]] = {coming, gone}
                await asyncio.wait(news, timeout=self._heartbeat, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                if not coming.done():
                    await write(b": ping\n\n")
                    continue
                try:
                    chunk = coming.result()
                except StopAsyncIteration:
                    return await write(b"", more=False)
                coming = None
                await write(chunk)
        except TimeoutError:
            return  # a client that does not read: the server closes its connection
        finally:
            await cancelled(gone, *([coming] if coming is not None else []))
            await self._events.aclose()
            self._on_close()
