"""POST /v1/upscale: an image's bytes in, the upscaled image's bytes or events out."""

from __future__ import annotations

import base64
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Query, Request, Response

from varsr_engine.engine.scheduling import Event
from varsr_engine.errors import VarsrError
from varsr_engine.serving.body import read_image_body
from varsr_engine.serving.disconnects import while_connected
from varsr_engine.serving.errors import error_body
from varsr_engine.serving.images import EVENT_STREAM, FORMATS, Format, accepted
from varsr_engine.serving.params import AnswerSettings, no_repeats
from varsr_engine.serving.previews import Previews
from varsr_engine.serving.record import Record, record_of
from varsr_engine.serving.schemas import IMAGE_ANSWER, IMAGE_BODY, UPSCALING, failures
from varsr_engine.serving.service import Service
from varsr_engine.serving.sse import EventStream, event
from varsr_engine.serving.upscaling import Answer, Deadline, Upscaling, within

logger = logging.getLogger(__name__)


def upscale_router(service: Service) -> APIRouter:
    """The route, on a service."""
    router = APIRouter()

    @router.post(
        "/v1/upscale",
        tags=["images"],
        response_class=Response,
        responses={200: IMAGE_ANSWER, **failures(*UPSCALING)},
        openapi_extra=IMAGE_BODY,
        dependencies=[Depends(no_repeats)],
    )
    async def upscale(request: Request, settings: Annotated[AnswerSettings, Query()]) -> Response:
        """Upscale one image, and wait for it.

        The answer's type is `format`, else what Accept asks for: PNG, JPEG, WebP. `Accept: text/event-stream` gives
        events: accepted, progress, preview, then result with the image as base64, or error.
        """
        engine, record = service.engine(), record_of(request)
        media = accepted(request.headers.get("accept"), _offered(settings.format))
        format = settings.format or cast(Format, media.removeprefix("image/") if media != EVENT_STREAM else "png")
        deadline = Deadline(record.start + min(settings.timeout_s or 1e9, service.settings.request_timeout))
        streamed = media == EVENT_STREAM
        params = settings.params(streamed=streamed)
        quality = settings.quality or 95
        hold = service.budget.hold()

        async def submitted(data: bytes) -> Upscaling:
            return await Upscaling.submitted(
                service,
                engine,
                record,
                data,
                params,
                hold=hold,
                deadline=deadline,
                format=format,
                quality=quality,
                events=streamed,
            )

        async def work(data: bytes) -> Answer:
            with contextlib.closing(await submitted(data)) as upscaling:
                return await upscaling.answer(await upscaling.result())

        with contextlib.ExitStack() as ends:
            ends.callback(hold.release)
            data = await read_image_body(request, service.settings, hold)
            if streamed:
                async with within(deadline):
                    upscaling = await while_connected(request, submitted(data))
                ends.callback(upscaling.close)
                return EventStream(
                    _events(service, record, upscaling, deadline),
                    ends.pop_all().close,
                    heartbeat=service.settings.heartbeat,
                    write_timeout=service.settings.write_timeout,
                )
            async with within(deadline):
                answer = await while_connected(request, work(data))
        return Response(answer.data, media_type=answer.media_type, headers=_headers(record, answer))

    return router


def _offered(format: Format | None) -> tuple[str, ...]:
    images = FORMATS if format is None else (format,)
    return (*(f"image/{name}" for name in images), EVENT_STREAM)


def _headers(record: Record, answer: Answer) -> dict[str, str]:
    return {
        "x-seed": str(answer.result.seed),
        "x-queue-ms": f"{(record.queue or 0.0) * 1000:.1f}",
        "x-model-ms": f"{(record.model or 0.0) * 1000:.1f}",
        "etag": answer.etag,
        "cache-control": "no-store",
    }


async def _events(
    service: Service, record: Record, upscaling: Upscaling, deadline: Deadline
) -> AsyncGenerator[bytes, None]:
    """The events of one image. Errors end them, as an event: the answer's status is sent already."""
    base = {"request_id": record.request_id}
    try:
        yield event("accepted", base | {"size": record.output, "source_size": record.size, "tiles": record.tiles})
        previews = Previews(service, record)
        async with within(deadline):
            async for step in upscaling.events():
                if isinstance(step, Event):
                    yield event("progress", {"stage": step.stage, "tile": step.index, "tiles": step.units})
                    if (preview := await previews.of(step)) is not None:
                        yield event("preview", preview)
                else:
                    result = step
            answer = await upscaling.answer(result)
        yield event("result", _result(record, answer))
    except VarsrError as error:
        record.code = error.code
        yield event("error", error_body(error, record.request_id))
    except Exception as error:
        logger.exception("request %s failed", record.request_id)
        record.code = "internal"
        yield event("error", error_body(error, record.request_id))


def _result(record: Record, answer: Answer) -> dict[str, Any]:
    stats = answer.result.stats()
    return {
        "request_id": record.request_id,
        "format": answer.format,
        "queue_ms": round((record.queue or 0.0) * 1000, 1),
        "model_ms": round((record.model or 0.0) * 1000, 1),
        "image": base64.b64encode(answer.data).decode(),
    } | {name: stats[name] for name in ("size", "source_size", "seed", "tiles", "warnings")}
