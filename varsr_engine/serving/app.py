"""The application: all routes on one engine; or a router of them for another application."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request

import varsr_engine
from varsr_engine.engine.engine import Engine
from varsr_engine.errors import VarsrError
from varsr_engine.serving.errors import BY_STATUS, MalformedRequestError
from varsr_engine.serving.gate import Gate, error_response, varsr_error
from varsr_engine.serving.lifecycle import Lifecycle
from varsr_engine.serving.params import validation_failed
from varsr_engine.serving.routes_health import health_router
from varsr_engine.serving.routes_images_edits import images_edits_router
from varsr_engine.serving.routes_jobs import jobs_router
from varsr_engine.serving.routes_models import models_router
from varsr_engine.serving.routes_page import page_router
from varsr_engine.serving.routes_upscale import upscale_router
from varsr_engine.serving.service import Service
from varsr_engine.serving.settings import ServerSettings
from varsr_engine.serving.telemetry import without_own_spans


def make_router(service: Service) -> APIRouter:
    """All routes. The application they are mounted in also needs `install`."""
    router = APIRouter()
    for part in (upscale_router, images_edits_router, jobs_router, models_router, health_router):
        router.include_router(part(service))
    router.include_router(page_router())
    return router


def install(app: FastAPI, service: Service) -> None:
    """What the routes rely on: the gate that all requests pass, and errors as the table says."""
    app.add_exception_handler(VarsrError, varsr_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_middleware(Gate, service=service)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(service.settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-request-id", "x-seed", "x-queue-ms", "x-model-ms", "etag", "retry-after", "location"],
        )


def create_app(engine: Engine | Lifecycle | Service, settings: ServerSettings | None = None) -> FastAPI:
    """An ASGI application on a warm engine, which stays its maker's to close, or on one that is still to be loaded.

    Its lifespan starts and closes the rest. With a Service, `settings` are the service's own.
    """
    if isinstance(engine, Service):
        service = engine
    else:
        lifecycle = Lifecycle.of(engine) if isinstance(engine, Engine) else engine
        service = Service(lifecycle, settings or ServerSettings())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            service.close()

    app = FastAPI(
        title="varsr_engine",
        version=varsr_engine.__version__,
        description="Image super-resolution with VARSR.",
        docs_url=None,  # those pages load scripts from another site
        redoc_url=None,
        redirect_slashes=False,
        root_path=service.settings.root_path,
        lifespan=lifespan,
        **without_own_spans(),
    )
    app.include_router(make_router(service))
    install(app, service)
    return app


async def _invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return error_response(request.scope, validation_failed(error))


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = BY_STATUS.get(error.status_code, MalformedRequestError)
    answer = error_response(request.scope, kind(str(error.detail)))
    if error.status_code == 405:
        answer.headers["allow"] = allowed_methods(request)
    return answer


def allowed_methods(request: Request) -> str:
    """All methods of the request's path, as the OpenAPI document has them: Starlette knows those of one route."""
    template = getattr(request.scope.get("route"), "path", None)
    methods = request.app.openapi()["paths"].get(template, {"get": {}})  # what is not in it is the page
    return ", ".join(sorted(method.upper() for method in methods))
