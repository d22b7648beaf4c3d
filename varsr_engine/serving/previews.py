"""Previews of an image while it is upscaled, as the events of the engine bring them."""

from __future__ import annotations

import base64
from typing import Any

from varsr_engine.engine.preview import Preview
from varsr_engine.engine.scheduling import Event
from varsr_engine.serving.record import Record
from varsr_engine.serving.service import Service, in_thread


class Previews:
    """Those of one request."""

    def __init__(self, service: Service, record: Record) -> None:
        self._service, self._record = service, record
        self._any = False

    async def encoded(self, preview: Preview, format: str = "JPEG") -> bytes:
        """The bytes of a preview, written off the event loop."""
        if not self._any:
            self._any = True
            self._service.metrics.first_preview.observe(self._record.elapsed)
        return await in_thread(self._service.encoding, lambda: preview.encode(format))

    async def of(self, step: Event) -> dict[str, Any] | None:
        """An event's preview as JSON; None if it has none."""
        if step.preview is None:
            return None
        data = await self.encoded(step.preview)
        return {
            "stage": step.stage,
            "tile": step.index,
            "tiles": step.units,
            "size": step.preview.size,
            "format": "jpeg",
            "image": base64.b64encode(data).decode(),
        }
