"""How far an image is, from the events of the engine: for hosts that draw a bar."""

from __future__ import annotations

from collections.abc import Sequence

from varsr_engine.engine.scheduling import Event


class Progress:
    """Steps done of an image. A step is one stage of one tile; the last stage is the whole image's.

    Events may be dropped, or come again after a fault: a tile is as far as the furthest stage that it was seen at.
    """

    def __init__(self, stages: Sequence[str]) -> None:
        """stages: of an image, in order (`Engine.stages`)."""
        self._place = {stage: place for place, stage in enumerate(stages, start=1)}
        self._seen: dict[int, int] = {}
        self.total = len(stages)

    def update(self, event: Event) -> int:
        """Take an event; how many steps are done."""
        own = len(self._place) if event.units == 1 else len(self._place) - 1
        self.total = own * event.units + (event.units > 1)
        self._seen[event.index] = max(self._seen.get(event.index, 0), min(own, self._place[event.stage]))
        return self.done

    @property
    def done(self) -> int:
        return sum(self._seen.values())
