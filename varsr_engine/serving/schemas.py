"""The JSON that the server answers with, for its OpenAPI document and for whoever reads it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from varsr_engine.serving.images import EVENT_STREAM, FORMATS


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: str
    param: str | None


class ErrorBody(BaseModel):
    """Every error of every route, in the shape of OpenAI's API."""

    error: ErrorDetail


class JobError(BaseModel):
    code: str
    message: str


class JobBody(BaseModel):
    """A job. Times are Unix seconds."""

    id: str
    object: Literal["job"] = "job"
    status: Literal["queued", "running", "succeeded", "failed"]
    created: float
    finished: float | None
    expires: float | None
    format: Literal["png", "jpeg", "webp"]
    source_size: tuple[int, int]
    size: tuple[int, int]
    tiles: int
    tiles_done: int
    stage: str | None
    seed: int | None
    seconds: dict[str, float] | None
    bytes: int | None
    result: str | None
    error: JobError | None


class Limits(BaseModel):
    max_body_bytes: int
    max_input_pixels: int
    max_output_pixels: int
    max_job_pixels: int
    max_side: int
    max_aspect: float


class ModelBody(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    version: str
    device: str
    dtype: str
    scales: list[int]
    tile: int
    fingerprint: str | None
    limits: Limits


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelBody]


class HealthBody(BaseModel):
    status: Literal["ok", "unavailable"]
    state: str


class VersionBody(BaseModel):
    version: str


class ImageBody(BaseModel):
    b64_json: str


class UsageDetails(BaseModel):
    image_tokens: int = 0
    text_tokens: int = 0


class Usage(BaseModel):
    """Tokens are what OpenAI bills by. Here nothing is billed: all are 0."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    input_tokens_details: UsageDetails = UsageDetails()


class ImagesBody(BaseModel):
    """Upscaled images, in the shape of OpenAI's API."""

    created: int
    data: list[ImageBody]
    output_format: Literal["png", "jpeg", "webp"]
    size: str
    quality: str
    background: Literal["transparent", "opaque"]
    usage: Usage = Usage()


BINARY = {"type": "string", "format": "binary"}
IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of one still PNG, JPEG or WebP image.",
        "content": {f"image/{name}": {"schema": BINARY} for name in FORMATS}
        | {"application/octet-stream": {"schema": BINARY}},
    }
}
IMAGE_ANSWER: dict[str, Any] = {
    "description": "The image; or, where the Accept header asks for it, events.",
    "content": {f"image/{name}": {"schema": BINARY} for name in FORMATS}
    | {EVENT_STREAM: {"schema": {"type": "string"}}},
}


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, for its documentation."""
    return {status: {"model": ErrorBody, "description": MEANINGS[status]} for status in statuses}


MEANINGS = {
    400: "The image or the request is corrupt.",
    401: "The API key is missing or wrong.",
    403: "A page of another origin, or a foreign host name.",
    404: "Not there.",
    405: "No such method here.",
    406: "None of the types that are accepted.",
    408: "The body came too slowly.",
    409: "The job has no result.",
    413: "The body, the image or its output is too large.",
    415: "Not an image, or a Content-Type, that is read here.",
    422: "A parameter is wrong.",
    429: "The queue is full: try again after Retry-After seconds.",
    500: "The server failed.",
    503: "Starting, shutting down, or out of memory.",
    504: "The time was up.",
}
UPSCALING = (400, 401, 403, 406, 408, 413, 415, 422, 429, 500, 503, 504)
ALWAYS = (401, 403, 422, 429, 500)
