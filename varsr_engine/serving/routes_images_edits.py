"""POST /v1/images/edits: upscaling for clients of OpenAI's images API, whole or with partial images."""

from __future__ import annotations

import base64
import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from varsr_engine.engine.engine import Engine
from varsr_engine.engine.params import MAX_SEED, UpscaleParams
from varsr_engine.engine.scheduling import Event
from varsr_engine.errors import InvalidParamsError, VarsrError
from varsr_engine.serving.body import Form, read_form
from varsr_engine.serving.budget import Hold
from varsr_engine.serving.disconnects import while_connected
from varsr_engine.serving.errors import error_body
from varsr_engine.serving.images import EVENT_STREAM, Format, accepted
from varsr_engine.serving.params import UpscaleSettings, no_repeats, optional, parse_size, validated
from varsr_engine.serving.previews import Previews
from varsr_engine.serving.record import Record, record_of
from varsr_engine.serving.schemas import BINARY, UPSCALING, ImagesBody, Usage, failures
from varsr_engine.serving.service import Service
from varsr_engine.serving.sse import EventStream, event
from varsr_engine.serving.upscaling import Answer, Deadline, Upscaling, within

logger = logging.getLogger(__name__)

MAX_IMAGES, MAX_PARTIAL = 4, 10
EDIT_SIZE = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"


class EditSettings(UpscaleSettings):
    """The form of OpenAI's API, and the settings of one image beside it."""

    prompt: str = optional("Taken and not used: the picture says it all.", max_length=32_000)
    model: str = optional("Taken and not used: the server has one model.", max_length=256)
    n: int = Field(1, description="Results, with seeds seed, seed + 1, ...", ge=1, le=MAX_IMAGES)
    size: str = Field("auto", description="Of the output: auto (scale, else 4x) or WIDTHxHEIGHT.", pattern=EDIT_SIZE)
    response_format: Literal["b64_json"] = optional("The server has no URLs to give.")
    output_format: Format = "png"
    output_compression: int = optional("Quality of JPEG and WebP, 1 to 100.", ge=1, le=100)
    stream: bool = Field(False, description="Events: partial images, then the whole one.")
    partial_images: int = Field(0, description="How many, in a stream.", ge=0, le=MAX_PARTIAL)
    background: Literal["auto", "opaque", "transparent"] = Field("auto", description="opaque drops transparency.")
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] = Field(  # type: ignore[assignment]
        "auto", description="Taken and not used."
    )
    input_fidelity: Literal["low", "high"] = optional("Taken and not used; see fidelity.")
    moderation: Literal["auto", "low"] = optional("Taken and not used.")
    user: str = optional("Taken and not used.", max_length=512)
    safety_identifier: str = optional("Taken and not used.", max_length=512)

    def edit_params(self) -> UpscaleParams:
        """Raises InvalidParamsError for values that do not go together."""
        more: dict[str, Any] = {}
        if self.size != "auto":
            more["target_size"] = parse_size(self.size)
        if self.background == "opaque":
            more["alpha"] = "drop"
        if self.stream and self.n > 1:
            raise InvalidParamsError("n must be 1 in a stream", param="n")
        if self.partial_images and not self.stream:
            raise InvalidParamsError("partial_images needs stream=true", param="partial_images")
        return self.params(streamed=self.stream and self.partial_images > 0, **more)


def _body_schema() -> dict[str, Any]:
    schema = EditSettings.model_json_schema()
    schema["properties"]["image"] = BINARY | {"description": "One still PNG, JPEG or WebP image."}
    schema["required"] = ["image"]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


ANSWER: dict[str, Any] = {
    "model": ImagesBody,
    "description": "The images; in a stream, events.",
    "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
}


def images_edits_router(service: Service) -> APIRouter:
    """The route, on a service."""
    router = APIRouter()

    @router.post(
        "/v1/images/edits",
        tags=["images"],
        response_model=ImagesBody,
        responses={200: ANSWER, **failures(*UPSCALING)},
        openapi_extra=_body_schema(),
        dependencies=[Depends(no_repeats)],
    )
    async def edit(request: Request) -> Response:
        """Upscale one image, as OpenAI's API edits images: base64 in JSON, or events with `stream`.

        Beside that API's fields it takes those of /v1/upscale.
        """
        engine, record = service.engine(), record_of(request)
        if request.query_params:
            name = next(iter(request.query_params))[:64]
            raise InvalidParamsError(f"{name!r}: this route takes its parameters in the form", param=name)
        accepted(request.headers.get("accept"), ("application/json", EVENT_STREAM))
        hold = service.budget.hold()
        with contextlib.ExitStack() as ends:
            ends.callback(hold.release)
            form = await read_form(request, service.settings, hold)
            settings = validated(EditSettings, form.fields)
            edit = Edit(service, engine, record, hold, settings, settings.edit_params(), _one_image(form))
            if settings.stream:
                async with within(edit.deadline):
                    upscaling = await while_connected(request, edit.submitted(edit.params, events=True))
                ends.callback(upscaling.close)
                return EventStream(
                    _events(edit, upscaling),
                    ends.pop_all().close,
                    heartbeat=service.settings.heartbeat,
                    write_timeout=service.settings.write_timeout,
                )
            async with within(edit.deadline):
                answers = await while_connected(request, edit.answers())
        body = _description(settings, answers[0]) | {
            "created": int(time.time()),
            "data": [{"b64_json": base64.b64encode(answer.data).decode()} for answer in answers],
            "usage": Usage().model_dump(),
        }
        return JSONResponse(body, headers={"cache-control": "no-store", "x-seed": str(answers[0].result.seed)})

    return router


def _one_image(form: Form) -> bytes:
    for name in form.files:
        if name not in ("image", "image[]"):
            raise InvalidParamsError(f"the file {name[:64]!r} is not taken: only image is", param=name[:64])
    images = [data for name in ("image", "image[]") for data in form.files.get(name, [])]
    if len(images) != 1:
        raise InvalidParamsError(f"exactly one image must be sent as a file, got {len(images)}", param="image")
    return images[0]


@dataclass(frozen=True, slots=True)
class Edit:
    """One request."""

    service: Service
    engine: Engine
    record: Record
    hold: Hold
    settings: EditSettings
    params: UpscaleParams
    image: bytes

    @property
    def deadline(self) -> Deadline:
        most = self.service.settings.request_timeout
        return Deadline(self.record.start + min(self.settings.timeout_s or most, most))

    async def submitted(self, params: UpscaleParams, *, events: bool = False) -> Upscaling:
        return await Upscaling.submitted(
            self.service,
            self.engine,
            self.record,
            self.image,
            params,
            hold=self.hold,
            deadline=self.deadline,
            format=self.settings.output_format,
            quality=self.settings.output_compression or 95,
            events=events,
        )

    async def answers(self) -> list[Answer]:
        """n results, of consecutive seeds, or of n random ones."""
        first = self.params.seed
        if first is not None and first + self.settings.n - 1 > MAX_SEED:
            raise InvalidParamsError("seed + n must stay below 2^63", param="seed")
        upscalings: list[Upscaling] = []
        with contextlib.ExitStack() as ends:
            for i in range(self.settings.n):
                seed = None if first is None else first + i
                upscalings.append(await self.submitted(self.params.replace(seed=seed)))
                ends.callback(upscalings[-1].close)
            results = [await upscaling.result() for upscaling in upscalings]
            return [await u.answer(result) for u, result in zip(upscalings, results, strict=True)]


def _description(settings: EditSettings, answer: Answer) -> dict[str, Any]:
    width, height = answer.result.size
    transparent = answer.result.picture.alpha is not None and answer.format != "jpeg"
    return {
        "output_format": answer.format,
        "size": f"{width}x{height}",
        "quality": settings.quality,
        "background": "transparent" if transparent else "opaque",
    }


async def _events(edit: Edit, upscaling: Upscaling) -> AsyncGenerator[bytes, None]:
    """Partial images as the scales pass, then the whole one."""
    record, settings = edit.record, edit.settings
    previews = Previews(edit.service, record)
    try:
        index = 0
        async with within(edit.deadline):
            async for step in upscaling.events():
                if not isinstance(step, Event):
                    result = step
                    continue
                due = progress(step, edit.engine) * (settings.partial_images + 1) >= index + 1
                if step.preview is None or index >= settings.partial_images or not due:
                    continue
                data = await previews.encoded(step.preview, settings.output_format.upper())
                width, height = step.preview.size
                yield _image_event(
                    "image_edit.partial_image",
                    data,
                    partial_image_index=index,
                    output_format=settings.output_format,
                    size=f"{width}x{height}",
                    quality=settings.quality,
                    background="auto",
                )
                index += 1
            answer = await upscaling.answer(result)
        described = _description(settings, answer)
        yield _image_event("image_edit.completed", answer.data, usage=Usage().model_dump(), **described)
    except VarsrError as error:
        record.code = error.code
        yield event("error", {"type": "error"} | error_body(error, record.request_id, openai=True))
    except Exception as error:
        logger.exception("request %s failed", record.request_id)
        record.code = "internal"
        yield event("error", {"type": "error"} | error_body(error, record.request_id, openai=True))


def progress(step: Event, engine: Engine) -> float:
    """The share of an image's scales that have passed, by the tile that passed the last one."""
    scales = engine.model_config.num_scales
    name, _, number = step.stage.partition(".")
    passed = int(number) + 1 if name == "scale" and number.isdecimal() else 0
    return (step.index + passed / scales) / step.units


def _image_event(kind: str, data: bytes, **fields: Any) -> bytes:
    return event(
        kind, {"type": kind, "b64_json": base64.b64encode(data).decode(), "created_at": int(time.time())} | fields
    )
