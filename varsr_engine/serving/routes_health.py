"""/healthz, /readyz and /metrics: for whatever watches the server."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from varsr_engine.serving.schemas import HealthBody, failures
from varsr_engine.serving.service import Service

UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"model": HealthBody, "description": "Not now."}}


def health_router(service: Service) -> APIRouter:
    """The routes, on a service."""
    router = APIRouter(tags=["health"])

    def answer(ok: bool, state: str) -> JSONResponse:
        body = {"status": "ok" if ok else "unavailable", "state": state}
        return JSONResponse(body, 200 if ok else 503, {"cache-control": "no-store"})

    @router.get("/healthz", response_model=HealthBody, responses={**UNAVAILABLE, **failures(403)})
    async def healthz() -> JSONResponse:
        """Whether the process is alive: 503 is a reason to restart it, while it starts or drains it is not."""
        engine, state = service.lifecycle.loaded(), service.lifecycle.state
        if state == "failed":
            return answer(False, state)
        if engine is not None and not engine.health().ok:
            return answer(False, "stalled" if engine.health().state == "open" else engine.health().state)
        return answer(True, state)

    @router.get("/readyz", response_model=HealthBody, responses={**UNAVAILABLE, **failures(403)})
    async def readyz() -> JSONResponse:
        """Whether requests are taken: only after the warm-up, and not while the server drains."""
        engine, state = service.lifecycle.loaded(), service.lifecycle.state
        healthy = engine is not None and engine.health().ok
        return answer(state == "ready" and healthy, state)

    @router.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses={200: {"content": {"text/plain": {}}}, **failures(401, 403)},
    )
    def metrics() -> Response:
        """In Prometheus' text format."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
