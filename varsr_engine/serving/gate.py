"""What every request passes, before and after its route: who asks, from where, how many; headers, log and metrics."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from varsr_engine.errors import RequestCancelled, VarsrError
from varsr_engine.serving.errors import (
    BusyError,
    ForbiddenError,
    UnauthorizedError,
    error_body,
    retry_after,
    status_of,
)
from varsr_engine.serving.record import KEY, Record, request_id
from varsr_engine.serving.service import Service
from varsr_engine.serving.settings import ServerSettings
from varsr_engine.serving.telemetry import span

logger = logging.getLogger(__name__)

OPEN_PATHS = ("/healthz", "/readyz", "/", "/favicon.ico")  # for whom has no key: probes, and the page that asks for one
PROBES = ("/healthz", "/readyz", "/metrics")
OPENAI_PATHS = ("/v1/images/edits",)
SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; "
        "form-action 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Gate:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        self._keys = KeyCheck(service.settings.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        record = Record(request_id(headers.get("x-request-id")), scope["method"])
        scope[KEY] = record
        counted = scope["path"] not in PROBES

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                outgoing = MutableHeaders(scope=message)
                outgoing["x-request-id"] = record.request_id
                for name, value in SECURITY_HEADERS.items():
                    outgoing.setdefault(name, value)
            elif message["type"] == "http.response.body":
                record.bytes_out += len(message.get("body", b""))
            await send(message)

        async def receiving() -> Message:
            message = await receive()
            record.bytes_in += len(message.get("body", b""))
            return message

        self._service.in_flight += counted
        try:
            with span("varsr.request", headers, varsr__request_id=record.request_id):
                self._admit(scope["path"], headers, counted)
                await self._app(scope, receiving, sending)
        except Exception as error:
            if not isinstance(error, VarsrError):
                logger.exception("request %s failed", record.request_id)
            if record.status == 0:
                await error_response(scope, error)(scope, receive, sending)
            elif record.code == "ok":
                record.code = "internal"
        finally:
            self._service.in_flight -= counted
            route = scope.get("route")
            record.route = getattr(route, "path", None) or record.route
            if record.status == 0 and record.code == "ok":
                record.code = RequestCancelled.code
            self._service.metrics.ended(record)
            if counted:
                record.log()

    def _admit(self, path: str, headers: Headers, counted: bool) -> None:
        settings = self._service.settings
        check_origin(headers, settings)
        if path not in OPEN_PATHS and not path.startswith("/static/"):
            self._keys.check(headers.get("authorization"))
        if counted and self._service.in_flight > settings.max_requests:
            raise BusyError(f"{settings.max_requests} requests are in flight, the most that the server takes")


class KeyCheck:
    """Whether a header carries one of the keys; the time that it takes tells nothing about them."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def check(self, authorization: str | None) -> None:
        """Raises UnauthorizedError. Without keys everybody may pass."""
        if not self._digests:
            return
        scheme, _, key = (authorization or "").partition(" ")
        given = hashlib.sha256(key.strip().encode()).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(matches):
            raise UnauthorizedError("the API key is missing or wrong: send Authorization: Bearer KEY")


def check_origin(headers: Headers, settings: ServerSettings) -> None:
    """Raise ForbiddenError for what a browser does for another site's page.

    A page's origin must be the server's own, or one of cors_origins. A server for this machine alone, without a key,
    must be called by one of its names: else a page whose host name resolves to it would be of its origin.
    """
    host = headers.get("host", "")
    origin = headers.get("origin")
    if origin is not None and origin not in settings.cors_origins and _netloc(origin) != host.lower():
        raise ForbiddenError("pages of other origins may not use this server (see cors_origins)")
    if settings.loopback and not settings.api_keys:
        name = _hostname(host)
        if name not in ("localhost", settings.host.strip("[]")) and not name.startswith("127.") and name != "::1":
            raise ForbiddenError("the Host header is not a name of this server")


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def error_response(scope: Scope, error: BaseException) -> JSONResponse:
    """Any error as an answer, noted in the request's record."""
    record: Record = scope[KEY]
    openai = scope["path"] in OPENAI_PATHS
    known = isinstance(error, VarsrError)
    record.code = error.code if isinstance(error, VarsrError) else "internal"
    status = status_of(error, openai=openai) if isinstance(error, VarsrError) else 500
    headers = {"cache-control": "no-store"}
    if isinstance(error, VarsrError) and (seconds := retry_after(error)) is not None:
        headers["retry-after"] = str(seconds)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if known and status >= 500 and error.__cause__ is not None:
        logger.error("request %s: %s", record.request_id, error, exc_info=error)
    return JSONResponse(error_body(error, record.request_id, openai=openai), status, headers)


async def varsr_error(request: Request, error: Exception) -> JSONResponse:
    """Exception handler of the application."""
    return error_response(request.scope, error)
