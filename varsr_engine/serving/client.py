"""A client that tries again: what a server on many machines needs, of which one may fall away at any time.

Sending a request again is safe, since its result follows from image, parameters and seed. Needs the standard library
only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import time
from typing import Any
from urllib.parse import urlencode, urlsplit

import varsr_engine.serving.errors  # noqa: F401  # whose kinds are found below
from varsr_engine.errors import InvalidParamsError, VarsrError

UNAVAILABLE = (429, 502, 503)  # by the server, or by what stands before it
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0  # seconds


class UnreachableError(VarsrError, ConnectionError):
    """Nothing answered, or what did was no server of ours, as often as it was tried."""

    retryable = True


class Client:
    """Upscales over HTTP. Threads may share one: it holds no connection and no state.

    urls: of one server, or of several that do the same, such as the proxies of a cluster's nodes; each try goes to the
    next. timeout: seconds of one try. attempts: tries in all. Between them it waits, twice as long each time, or as
    long as the server asks for (Retry-After), at most 10 seconds.
    """

    def __init__(self, *urls: str, api_key: str | None = None, timeout: float = 120.0, attempts: int = 8) -> None:
        self._parts = [urlsplit(url) for url in urls]
        for url, parts in zip(urls, self._parts, strict=True):
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise InvalidParamsError(f"url must be http://HOST:PORT or https://HOST, got {url!r}")
        if not urls or attempts < 1:
            raise InvalidParamsError("a client needs at least one url and one attempt")
        self._headers = {"content-type": "application/octet-stream"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._timeout, self._attempts = timeout, attempts

    def upscale(self, image: bytes, **params: Any) -> bytes:
        """An image's file, upscaled: PNG unless `format` says otherwise.

        params: fields of UpscaleParams, format, quality, timeout_s. Raises the server's own error, such as
        InvalidImageError, and UnreachableError.
        """
        query = f"/v1/upscale?{urlencode(params)}"
        error: VarsrError | None = None
        for attempt in range(self._attempts):
            if error is not None:
                time.sleep(pause(attempt, error))
            parts = self._parts[attempt % len(self._parts)]
            try:
                status, headers, body = self._post(parts, query, image)
            except (OSError, http.client.HTTPException) as cause:
                error = UnreachableError(f"{parts.netloc} does not answer: {cause or type(cause).__name__}")
                continue
            if status == 200:
                return body
            error = error_of(status, headers, body, parts.netloc)
            if not worth_another(status, error):
                break
        assert error is not None
        raise error

    def _post(self, parts: Any, query: str, image: bytes) -> tuple[int, http.client.HTTPMessage, bytes]:
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        with contextlib.closing(kind(parts.hostname, parts.port, timeout=self._timeout)) as connection:
            connection.request("POST", parts.path.rstrip("/") + query, image, self._headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()


def worth_another(status: int, error: VarsrError) -> bool:
    """Not the server's own word on this image; of a 500, only one that another program wrote."""
    return status in UNAVAILABLE or (status >= 500 and isinstance(error, UnreachableError))


def pause(attempt: int, error: VarsrError) -> float:
    """Seconds before a try: clients that failed together do not come back together."""
    asked = error.details.get("retry_after_s")
    if asked is not None:
        return min(LONGEST_PAUSE, float(asked)) * random.uniform(1.0, 1.2)
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)


def error_of(status: int, headers: http.client.HTTPMessage, body: bytes, server: str) -> VarsrError:
    """A server's error as the exception that it was there; an UnreachableError where the body is not of ours."""
    after = headers.get("retry-after", "")
    details = {"retry_after_s": int(after)} if after.isdecimal() else {}
    try:
        told = json.loads(body)["error"]
        return _kinds()[told["code"]](told["message"], **details)
    except (ValueError, LookupError, TypeError):
        return UnreachableError(f"{server} answered {status}, without a reason that a server of VARSR gives", **details)


def _kinds() -> dict[str, type[VarsrError]]:
    """All kinds of errors by their code."""
    found, left = {VarsrError.code: VarsrError}, [VarsrError]
    while left:
        kinds = left.pop().__subclasses__()
        found |= {kind.code: kind for kind in kinds if "code" in vars(kind)}
        left += kinds
    return found
