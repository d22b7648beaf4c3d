"""The server process: uvicorn, with time limits that it does not have, and an end that lets requests finish."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from varsr_engine.errors import InvalidParamsError
from varsr_engine.serving.service import Service
from varsr_engine.serving.settings import ServerSettings

logger = logging.getLogger(__name__)


def guarded_protocol(settings: ServerSettings) -> type[H11Protocol]:
    """uvicorn's HTTP/1.1, whose connections must bring a whole head in time, and be read in time."""

    class GuardedProtocol(H11Protocol):
        _head_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_head_timer()
            self._stop_write_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_head()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._write_timer is None:
                self._write_timer = self.loop.call_later(settings.write_timeout, self.transport.abort)

        def resume_writing(self) -> None:
            self._stop_write_timer()
            super().resume_writing()

        def _watch_head(self) -> None:
            """A time limit for what comes while no request is answered: heads, and what is left of refused bodies."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_head_timer()
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(settings.header_timeout, self.transport.close)

        def _stop_head_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _stop_write_timer(self) -> None:
            if self._write_timer is not None:
                self._write_timer.cancel()
                self._write_timer = None

    return GuardedProtocol


class DrainingServer(uvicorn.Server):
    """Goes on answering after SIGTERM or SIGINT, until nothing is in flight or `drain_timeout` is over.

    Meanwhile /readyz says 503 and new requests are refused with `draining`. A second signal ends it at once.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._give_up: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._give_up is not None:
            self.should_exit = self.force_exit = True
            return
        self._give_up = asyncio.get_event_loop().time() + self._service.settings.drain_timeout
        self._service.drain()

    async def on_tick(self, counter: int) -> bool:
        if self._service.lifecycle.state == "failed":
            return True
        if self._give_up is not None:
            late = asyncio.get_running_loop().time() > self._give_up
            if late and self._service.in_flight:
                logger.warning("%d requests are given up: the drain took too long", self._service.in_flight)
                self._service.give_up()
            if late or self._service.drained:
                return True
        return await super().on_tick(counter)


def listen(settings: ServerSettings) -> socket.socket:
    """A listening socket. Raises InvalidParamsError where the address cannot be taken."""
    host = settings.host.strip("[]")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
            sock.listen(512)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidParamsError(f"cannot listen on {settings.host}, port {settings.port}: {reason}") from None
    return sock


def server_config(app: FastAPI, settings: ServerSettings) -> uvicorn.Config:
    """uvicorn's settings. Logging is left to whoever owns the process."""
    options: dict[str, Any] = {
        "http": guarded_protocol(settings),
        "ws": "none",
        "lifespan": "on",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "limit_concurrency": settings.max_connections,
        "timeout_keep_alive": settings.keep_alive,
        "timeout_graceful_shutdown": 2,  # what was to be waited for was: see DrainingServer
        "h11_max_incomplete_event_size": settings.max_header_bytes,
        "root_path": settings.root_path,
    }
    return uvicorn.Config(app, **options)


def serve(app: FastAPI, service: Service, sock: socket.socket) -> None:
    """Serve until a signal, or until the model turns out not to load: `service.lifecycle.error` says so."""
    DrainingServer(server_config(app, service.settings), service).run(sockets=[sock])
