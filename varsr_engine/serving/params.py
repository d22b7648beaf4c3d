"""Query and form parameters → UpscaleParams. Names are those of UpscaleParams; unknown ones are errors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from varsr_engine.engine.params import MAX_PREVIEW_SIDE, MAX_SEED, UpscaleParams
from varsr_engine.errors import InvalidParamsError
from varsr_engine.serving.images import Format

SIZE = r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"
PARAM_NAMES = frozenset(f.name for f in dataclasses.fields(UpscaleParams))


def optional(description: str = "", **limits: Any) -> Any:
    """A field that may be left out, but never be null: a query has no null."""
    return Field(default_factory=lambda: None, description=description or None, **limits)


class UpscaleSettings(BaseModel):
    """The settings of one image. What is left out is the model's default."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, str_max_length=64)

    scale: float = optional("Size of the output over the input's; 4 if no size is given.", gt=0, le=64)
    target_size: str = optional("Size of the output, WIDTHxHEIGHT in pixels.", pattern=SIZE)
    longest_side: int = optional("Longest side of the output in pixels.", ge=1, le=65_535)
    seed: str = optional("An integer in [0, 2^63), or random. Default: 0.", pattern=r"^([0-9]{1,19}|random)$")
    cfg: float = optional("Strength of guidance.", ge=0, le=100)
    label: int = optional("Class: 0 is high quality.", ge=0, le=65_535)
    top_k: int = optional("Token sampling; 1 is the argmax, 0 no limit.", ge=0, le=1_000_000)
    top_p: float = optional("Token sampling.", gt=0, le=1)
    temperature: float = optional("Of sampled tokens.", gt=0, le=100)
    steps: int = optional("Of the refiner.", ge=1, le=1000)
    refiner_temperature: float = optional("Of the refiner's noise.", ge=0, le=100)
    refiner: Literal["on", "off"] = optional()
    color_fix: Literal["adain", "wavelet", "none"] = optional("How colours are brought back to the input's.")
    fidelity: float = optional("Share of the resized input in the output.", ge=0, le=1)
    alpha: Literal["keep", "drop"] = optional()
    tile: Literal["auto", "published", "off"] = optional()
    tile_overlap: int = optional("Latent cells that neighbouring tiles share.", ge=0, le=1024)
    preset: Literal["quality", "balanced", "fast"] = optional("quality is exact, the others are faster.")
    guided_scales: int = optional("How many of the first scales have guidance.", ge=0, le=64)
    stop_at_scale: int = optional("How many scales run; fewer than all are a draft.", ge=1, le=64)
    previews: Literal["none", "latent", "decoded"] = optional("Of events. Default: latent.")
    preview_max_side: int = optional("Longest side of a preview. Default: 512.", ge=1, le=MAX_PREVIEW_SIDE)
    timeout_s: float = optional("Seconds until the request fails with 504; from 1 to the server's.", ge=1, le=86_400)
    quality: int = optional("Of JPEG and WebP. Default: 95.", ge=1, le=100)

    def params(self, *, streamed: bool = False, **more: Any) -> UpscaleParams:
        """streamed: whether there are events to show previews. Raises InvalidParamsError for values that conflict."""
        given: dict[str, Any] = self.model_dump(exclude_unset=True, include=set(PARAM_NAMES))
        if streamed:
            given = {"previews": "latent", "preview_max_side": 512} | given
        else:
            given["previews"] = "none"
        if "seed" in given:
            given["seed"] = parse_seed(self.seed)
        if "target_size" in given:
            given["target_size"] = parse_size(self.target_size)
        return UpscaleParams.from_dict(given | more)


class JobSettings(UpscaleSettings):
    """Those of a job; its result is a file of one format."""

    format: Format = Field("png", description="Of the result. Only png is written while it is decoded.")


class AnswerSettings(UpscaleSettings):
    """Those of an image that is waited for."""

    format: Format = optional("Of the result. Default: what the Accept header asks for, else png.")


M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], values: Mapping[str, str]) -> M:
    """Form fields as a model. Raises InvalidParamsError."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False)) from None


def invalid(errors: Any) -> InvalidParamsError:
    """The first of pydantic's or FastAPI's errors as one of ours. What was given is not repeated."""
    first = errors[0] if errors else {}
    place = [part for part in first.get("loc", ()) if part not in ("query", "body", "path", "header")]
    name = str(place[0])[:64] if place else ""
    if first.get("type") == "extra_forbidden":
        return InvalidParamsError(f"unknown parameter {name!r}", param=name)
    return InvalidParamsError(f"{name}: {first.get('msg', 'invalid')}" if name else "invalid request", param=name)


def validation_failed(error: RequestValidationError) -> InvalidParamsError:
    return invalid(error.errors())


async def no_repeats(request: Request) -> None:
    """A dependency: a query parameter that comes twice is an error, not a choice."""
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name in seen:
            raise InvalidParamsError(f"the parameter {name[:64]!r} is given twice", param=name[:64])
        seen.add(name)


def parse_seed(text: str) -> int | None:
    """None, which draws one, for "random"."""
    if text == "random":
        return None
    if int(text) > MAX_SEED:
        raise InvalidParamsError("seed must be an integer in [0, 2^63), or random", param="seed")
    return int(text)


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "1920x1080"."""
    match = re.fullmatch(r"([0-9]+)x([0-9]+)", text)
    if match is None:
        raise InvalidParamsError("a size must be WIDTHxHEIGHT in pixels, such as 1920x1080")
    return int(match[1]), int(match[2])
