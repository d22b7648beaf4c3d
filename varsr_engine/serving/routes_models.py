"""GET /v1/models and /version: what is served."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse

import varsr_engine
from varsr_engine.engine.engine import Engine
from varsr_engine.serving.errors import NotFoundError
from varsr_engine.serving.params import no_repeats
from varsr_engine.serving.schemas import ALWAYS, ModelBody, ModelList, VersionBody, failures
from varsr_engine.serving.service import Service


def models_router(service: Service) -> APIRouter:
    """The routes, on a service."""
    router = APIRouter(tags=["models"], dependencies=[Depends(no_repeats)])
    started = int(time.time())

    def described(engine: Engine) -> dict[str, Any]:
        settings, config = service.settings, engine.model_config
        return {
            "id": engine.model_id,
            "object": "model",
            "created": started,
            "owned_by": "varsr_engine",
            "version": varsr_engine.__version__,
            "device": str(engine.device),
            "dtype": str(engine.dtype).removeprefix("torch."),
            "scales": list(config.patch_nums),
            "tile": config.image_side,
            "fingerprint": getattr(engine, "fingerprint", None),
            "limits": {
                "max_body_bytes": settings.max_body_bytes,
                "max_input_pixels": settings.max_input_pixels,
                "max_output_pixels": settings.max_output_pixels,
                "max_job_pixels": settings.max_job_pixels,
                "max_side": settings.max_side,
                "max_aspect": settings.max_aspect,
            },
        }

    @router.get("/v1/models", response_model=ModelList, responses=failures(503, *ALWAYS))
    async def models() -> JSONResponse:
        """The one model, in a list."""
        return JSONResponse({"object": "list", "data": [described(service.engine())]})

    @router.get("/v1/models/{model}", response_model=ModelBody, responses=failures(404, 503, *ALWAYS))
    async def model(model: str) -> JSONResponse:
        """The model by its id."""
        engine = service.engine()
        if model != engine.model_id:
            raise NotFoundError("no such model: GET /v1/models tells which there is")
        return JSONResponse(described(engine))

    @router.get("/version", response_model=VersionBody, responses=failures(*ALWAYS))
    async def version() -> JSONResponse:
        """Of varsr_engine."""
        return JSONResponse({"version": varsr_engine.__version__})

    return router
