"""/v1/jobs: images that take too long to wait for."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from varsr_engine.serving.body import read_image_body
from varsr_engine.serving.errors import JobNotDoneError, error_body
from varsr_engine.serving.images import Bounds, Planned, answer_bounds, job_bounds, plan
from varsr_engine.serving.jobs import Job
from varsr_engine.serving.params import JobSettings, no_repeats
from varsr_engine.serving.record import record_of
from varsr_engine.serving.schemas import ALWAYS, BINARY, IMAGE_BODY, JobBody, failures
from varsr_engine.serving.service import Service, in_thread

JobId = Annotated[str, Path(max_length=64, pattern="^[A-Za-z0-9_-]+$")]
RESULT: dict[str, Any] = {
    "description": "The image.",
    "content": {f"image/{name}": {"schema": BINARY} for name in ("png", "jpeg", "webp")},
}


def jobs_router(service: Service) -> APIRouter:
    """The routes, on a service."""
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[Depends(no_repeats)])

    def described(job: Job) -> dict[str, Any]:
        return job_body(job, service.settings.root_path, service.settings.job_ttl)

    @router.post(
        "",
        status_code=202,
        response_model=JobBody,
        responses=failures(400, 401, 403, 408, 413, 415, 422, 429, 500, 503),
        openapi_extra=IMAGE_BODY,
    )
    async def create(request: Request, settings: Annotated[JobSettings, Query()]) -> JSONResponse:
        """Upscale one image later. The answer tells the job's id; the input's header is checked at once."""
        engine, record = service.engine(), record_of(request)
        params = settings.params()
        hold = service.budget.hold()
        try:
            data = await read_image_body(request, service.settings, hold)

            def planned() -> Planned:
                bounds = job_bounds(service.settings) if settings.format == "png" else _whole(service)
                return plan(data, engine, params, settings.format, service.settings, bounds)

            job_plan = await in_thread(service.decoding, planned)
            record.size, record.output, record.tiles = job_plan.size, job_plan.output, job_plan.tiles
            job = Job(engine, data, params, job_plan, settings.format, settings.quality or 95)
            service.jobs.add(job, hold)
        except BaseException:
            hold.release()
            raise
        location = f"{service.settings.root_path}/v1/jobs/{job.id}"
        return JSONResponse(described(job), 202, headers={"location": location, "cache-control": "no-store"})

    @router.get("/{job_id}", response_model=JobBody, responses=failures(404, *ALWAYS))
    async def show(job_id: JobId) -> JSONResponse:
        """How far a job is."""
        return JSONResponse(described(service.jobs.get(job_id)), headers={"cache-control": "no-store"})

    @router.get("/{job_id}/result", response_class=Response, responses={200: RESULT, **failures(404, 409, *ALWAYS)})
    async def result(job_id: JobId) -> Response:
        """A job's image, once it has succeeded. Ranges may be asked for."""
        job = service.jobs.get(job_id)
        if job.path is None or job.report is None or job.status != "succeeded":
            raise JobNotDoneError(f"the job has no result: it is {job.status}")
        return FileResponse(
            job.path,
            media_type=f"image/{job.format}",
            headers={"x-seed": str(job.report.seed), "cache-control": "no-store"},
        )

    @router.delete("/{job_id}", status_code=204, responses=failures(404, *ALWAYS))
    async def delete(job_id: JobId) -> Response:
        """Cancel a job, and forget it with its result."""
        service.jobs.remove(job_id)
        return Response(status_code=204)

    return router


def _whole(service: Service) -> Bounds:
    """Of a format that is not written while it is decoded: the whole picture is in memory."""
    pixels, tiles, _ = answer_bounds(service.settings)
    return Bounds(pixels, tiles, "; only format=png takes larger ones")


def job_body(job: Job, root_path: str, ttl: float) -> dict[str, Any]:
    """A job as JSON (`JobBody`)."""
    error = None
    if job.error is not None:
        detail = error_body(job.error, f"job {job.id}")["error"]
        error = {"code": detail["code"], "message": detail["message"]}
    report = job.report if job.status == "succeeded" else None
    return {
        "id": job.id,
        "object": "job",
        "status": job.status,
        "created": round(job.created, 3),
        "finished": None if job.finished is None else round(job.finished, 3),
        "expires": None if job.finished is None else round(job.finished + ttl, 3),
        "format": job.format,
        "source_size": job.planned.size,
        "size": job.planned.output if report is None else report.size,
        "tiles": job.planned.tiles,
        "tiles_done": job.tiles_done,
        "stage": job.stage,
        "seed": None if report is None else report.seed,
        "seconds": None if report is None else report.stats()["seconds"],
        "bytes": None if report is None else job.size,
        "result": None if report is None else f"{root_path}/v1/jobs/{job.id}/result",
        "error": error,
    }
