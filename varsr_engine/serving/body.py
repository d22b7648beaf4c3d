"""Request bodies: read while they come, and cut off where they are too long or too slow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, NoReturn

from fastapi import Request
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from varsr_engine.errors import PayloadTooLargeError, RequestCancelled, UnsupportedFormatError
from varsr_engine.serving.budget import Hold
from varsr_engine.serving.errors import BodyTimeoutError, MalformedRequestError
from varsr_engine.serving.settings import ServerSettings

MAX_FIELDS, MAX_FIELD_BYTES, MULTIPART_OVERHEAD = 64, 64 * 1024, 256 * 1024


def content_type(request: Request) -> str:
    """The type without its parameters, in lower case; "" if there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def chunks(request: Request, settings: ServerSettings, hold: Hold, limit: int) -> AsyncIterator[bytes]:
    """The body as it comes, counted into `hold`.

    Raises PayloadTooLargeError as soon as it is longer, or says it is, than `limit` bytes, BodyTimeoutError where it
    comes too slowly, RequestCancelled where the client is gone, BusyError.
    """
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal():
        raise MalformedRequestError("Content-Length must be a number")
    if int(declared[:20]) > limit:
        _too_large(limit)
    start, received = time.monotonic(), 0
    while True:
        left = start + settings.body_grace + received / settings.body_rate - time.monotonic()
        try:
            message = await asyncio.wait_for(request.receive(), max(0.0, left))
        except TimeoutError:
            raise BodyTimeoutError(
                f"the body came too slowly: {received} bytes in {time.monotonic() - start:.1f} s"
            ) from None
        if message["type"] == "http.disconnect":
            raise RequestCancelled("the client is gone")
        chunk = message.get("body", b"")
        received += len(chunk)
        if received > limit:
            _too_large(limit)
        hold.add(len(chunk))
        yield chunk
        if not message.get("more_body", False):
            return


def _too_large(limit: int) -> NoReturn:
    raise PayloadTooLargeError(f"the body has more than the {limit} bytes that are allowed", max_bytes=limit)


async def read_image_body(request: Request, settings: ServerSettings, hold: Hold) -> bytes:
    """The whole body of a request whose type is that of an image. Raises UnsupportedFormatError, and as `chunks`."""
    if content_type(request) not in IMAGE_TYPES:
        given = "none" if "content-type" not in request.headers else "another"
        raise UnsupportedFormatError(
            f"the Content-Type must be one of {', '.join(IMAGE_TYPES)}; the request has {given}", param="content-type"
        )
    parts = [chunk async for chunk in chunks(request, settings, hold, settings.max_body_bytes)]
    return b"".join(parts)


IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "application/octet-stream")


class Form:
    """A multipart body: fields and files by name, in memory."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.files: dict[str, list[bytes]] = {}


async def read_form(request: Request, settings: ServerSettings, hold: Hold) -> Form:
    """A multipart/form-data body. A field that comes twice is an error; a file's name is never looked at.

    Raises UnsupportedFormatError for another type, MalformedRequestError, and as `chunks`.
    """
    if content_type(request) != "multipart/form-data":
        raise UnsupportedFormatError("the Content-Type must be multipart/form-data", param="content-type")
    limit = settings.max_body_bytes + MULTIPART_OVERHEAD
    parser = _InMemoryParser(request.headers, chunks(request, settings, hold, limit))
    form = Form()
    try:
        parsed = await parser.parse()
    except MultiPartException as error:
        raise MalformedRequestError(f"the form is malformed: {error.message}") from None
    except (UnicodeError, ValueError, LookupError) as error:  # of part headers
        raise MalformedRequestError("the form is malformed") from error
    try:
        for name, value in parsed.multi_items():
            if isinstance(value, UploadFile):
                form.files.setdefault(name, []).append(await value.read())
            elif name in form.fields:
                raise MalformedRequestError(f"the form has the field {name[:64]!r} twice", param=name[:64])
            else:
                form.fields[name] = value
    finally:
        await parsed.close()
    return form


class _InMemoryParser(MultiPartParser):
    """Files stay in memory, whose bound is the body's: nothing of a request is written to a disk."""

    spool_max_size = max_file_size = 1 << 40  # the latter is the name in Starlette before 0.46

    def __init__(self, headers: Headers, stream: Any) -> None:
        super().__init__(headers, stream, max_files=8, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
