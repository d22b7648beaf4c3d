"""OpenTelemetry spans, through its API alone: without an SDK, or without the API, they cost nothing."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI

try:
    from opentelemetry import propagate, trace
except ImportError:  # FastAPI before 0.16x brings no API
    propagate = trace = None  # type: ignore[assignment]


@contextlib.contextmanager
def span(name: str, headers: Mapping[str, str] | None = None, **attributes: Any) -> Iterator[Any]:
    """A span around a block; a child of the caller's where `headers` carry its context. Yields it, or None."""
    if trace is None:
        yield None
        return
    tracer = trace.get_tracer("varsr_engine.serving")
    context = None if headers is None else propagate.extract(dict(headers))
    given = {key.replace("__", "."): value for key, value in attributes.items() if value is not None}
    with tracer.start_as_current_span(name, context=context, attributes=given) as current:
        yield current


def without_own_spans() -> dict[str, Any]:
    """The argument that keeps newer versions of FastAPI from spans of their own, beside ours."""
    if "telemetry" not in inspect.signature(FastAPI.__init__).parameters:
        return {}
    return {"telemetry": {"tracing": False, "metrics": False, "logs": False}}
