"""Errors that only a server has, and every error as an HTTP answer.

The table of `varsr_engine.errors`, code and status a class, is the table of the server too.
"""

from __future__ import annotations

import math
from typing import Any

from varsr_engine.errors import AdmissionError, EngineDeadError, InputError, InvalidParamsError, VarsrError


class UnauthorizedError(VarsrError):
    """The API key is missing or wrong."""

    code = "unauthorized"
    http_status = 401


class ForbiddenError(VarsrError):
    """A browser's page of another origin, or a host name that is not this server's."""

    code = "forbidden"
    http_status = 403


class NotFoundError(VarsrError):
    """No such path, or no such job (any more)."""

    code = "not_found"
    http_status = 404


class MethodNotAllowedError(VarsrError):
    """The path has no such method."""

    code = "method_not_allowed"
    http_status = 405


class NotAcceptableError(VarsrError):
    """The server writes none of the types that the Accept header allows."""

    code = "not_acceptable"
    http_status = 406


class BodyTimeoutError(VarsrError, TimeoutError):
    """The body came too slowly."""

    code = "body_timeout"
    http_status = 408
    retryable = True


class JobNotDoneError(VarsrError):
    """The job has no result: not yet, or because it failed or was cancelled."""

    code = "job_not_done"
    http_status = 409


class MalformedRequestError(InputError):
    """The request's body or headers break their own format."""

    code = "malformed_request"


class BusyError(AdmissionError):
    """The server holds as many requests, jobs or bytes as it may."""

    code = "server_busy"
    http_status = 429


class NotReadyError(AdmissionError):
    """The model is being loaded or warmed up."""

    code = "not_ready"


BY_STATUS: dict[int, type[VarsrError]] = {404: NotFoundError, 405: MethodNotAllowedError}


def status_of(error: VarsrError, *, openai: bool = False) -> int:
    """The HTTP status. On the OpenAI-compatible route a bad parameter is a 400, as there."""
    return 400 if openai and isinstance(error, InvalidParamsError) else error.http_status


def retry_after(error: VarsrError) -> int | None:
    """Whole seconds of a Retry-After header: at least 1, at most an hour; None where it is not for now or ever."""
    if isinstance(error, EngineDeadError) or error.http_status not in (429, 503):
        return None
    seconds = error.details.get("retry_after_s")
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        return 1
    return min(3600, max(1, math.ceil(seconds)))


def error_type(status: int) -> str:
    """What OpenAI's API calls this kind of error."""
    if status in (401, 403):
        return "authentication_error" if status == 401 else "permission_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"


def error_body(error: BaseException, request_id: str, *, openai: bool = False) -> dict[str, Any]:
    """An error as JSON, in the shape of OpenAI's API. Of an error that is not ours it tells nothing but the request."""
    if not isinstance(error, VarsrError) or error.code in HIDDEN:
        message = f"the server failed on this request; its log has the reason under {request_id}"
        code = error.code if isinstance(error, VarsrError) else "internal"
        return {"error": {"message": message, "type": "server_error", "code": code, "param": None}}
    param = error.details.get("param")
    return {
        "error": {
            "message": error.message,
            "type": error_type(status_of(error, openai=openai)),
            "code": error.code,
            "param": param if isinstance(param, str) else None,
        }
    }


# Their messages may name files, or tell of the machine.
HIDDEN = frozenset(
    {"internal", "output_error", "model_load", "model_not_found", "unsafe_checkpoint", "checkpoint_mismatch"}
    | {"kernel_unavailable", "engine_dead", "resource_exhausted"}
)
