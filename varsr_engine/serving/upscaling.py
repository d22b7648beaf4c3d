"""One image through the engine: checked, decoded and queued, waited for, encoded."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from varsr_engine.engine.engine import Engine
from varsr_engine.engine.params import UpscaleParams
from varsr_engine.engine.result import UpscaleResult
from varsr_engine.engine.scheduling import Event, Handle
from varsr_engine.errors import DeadlineExceededError, DrainingError, RequestCancelled, VarsrError
from varsr_engine.serving.budget import BYTES_A_PIXEL, Hold
from varsr_engine.serving.images import Format, Planned, answer_bounds, plan
from varsr_engine.serving.record import Record
from varsr_engine.serving.service import Service, in_thread
from varsr_engine.serving.telemetry import span


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a request's time is up, by time.monotonic."""

    at: float

    @property
    def left(self) -> float:
        return max(0.001, self.at - time.monotonic())


@contextlib.asynccontextmanager
async def within(deadline: Deadline) -> AsyncIterator[None]:
    """A block that ends with DeadlineExceededError when the time is up."""
    try:
        async with asyncio.timeout(deadline.left):
            yield
    except DeadlineExceededError:
        raise
    except TimeoutError:
        raise DeadlineExceededError("the request's time was up before its result was ready") from None


@dataclass(frozen=True, slots=True)
class Answer:
    """An image as it is sent, and how it was made."""

    data: bytes
    format: Format
    result: UpscaleResult

    @property
    def media_type(self) -> str:
        return f"image/{self.format}"

    @property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.data).hexdigest()[:32]}"'


class Upscaling:
    """A queued image. Whoever makes one calls `close`, which cancels what is not done."""

    def __init__(
        self, service: Service, record: Record, handle: Handle[UpscaleResult], format: Format, quality: int
    ) -> None:
        self._service, self._record, self._handle = service, record, handle
        self._format, self._quality = format, quality
        self._submitted = time.monotonic()

    @classmethod
    async def submitted(
        cls,
        service: Service,
        engine: Engine,
        record: Record,
        data: bytes,
        params: UpscaleParams,
        *,
        hold: Hold,
        deadline: Deadline,
        format: Format,
        quality: int,
        events: bool = False,
    ) -> Upscaling:
        """Check, decode and queue an image, off the event loop. Raises the engine's and the limits' errors.

        hold: counts the pixels; its maker releases it.
        """

        def submit() -> tuple[Planned, Handle[UpscaleResult]]:
            start = time.monotonic()
            planned = plan(data, engine, params, format, service.settings, answer_bounds(service.settings))
            hold.add(planned.pixels * BYTES_A_PIXEL)
            handle = engine.submit(data, params, deadline_s=deadline.left, events=events)
            service.metrics.decode.observe(time.monotonic() - start)
            return planned, handle

        with span("varsr.decode"):
            planned, handle = await in_thread(service.decoding, submit, lambda late: late[1].cancel())
        record.size, record.output, record.tiles = planned.size, planned.output, planned.tiles
        return cls(service, record, handle, format, quality)

    async def events(self) -> AsyncIterator[Event | UpscaleResult]:
        """What passes while the image is upscaled, then its result."""
        try:
            async for event in self._handle.aevents():
                yield event
        except RequestCancelled as error:
            raise self._ended(error) from None

    async def result(self) -> UpscaleResult:
        try:
            with span("varsr.upscale"):
                return await self._handle
        except RequestCancelled as error:
            raise self._ended(error) from None

    def _ended(self, error: RequestCancelled) -> VarsrError:
        """Why it was cancelled, if not by its own client."""
        if self._service.lifecycle.state == "closed":
            return DrainingError("the server was shut down before the result was ready")
        return error

    async def answer(self, result: UpscaleResult) -> Answer:
        """Encode a result, off the event loop."""
        record, start = self._record, time.monotonic()
        model = sum(result.seconds.values())
        record.seed, record.model = result.seed, model
        record.queue = max(0.0, start - self._submitted - model)
        with span("varsr.encode"):
            data = await in_thread(self._service.encoding, lambda: result.encode(self._format, quality=self._quality))
        record.encode = time.monotonic() - start
        return Answer(data, self._format, result)

    def close(self) -> None:
        self._handle.cancel()
