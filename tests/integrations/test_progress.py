"""Progress from events: whole for one tile and for several, and right where events are missed or come again."""

from __future__ import annotations

import pytest

from tests.engine.test_tiling import picture
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.result import UpscaleResult
from varsr_engine.engine.scheduling import Event
from varsr_engine.integrations.progress import Progress

STAGES = ["condition", "scale.0", "scale.1", "decoder"]


@pytest.mark.parametrize(("size", "tiles"), [((8, 8), 1), ((20, 13), 6)])
def test_an_image_is_done_at_its_end(micro: Engine, size: tuple[int, int], tiles: int) -> None:
    progress = Progress(micro.stages(micro.params_of(None, {})))
    steps = []
    for event in micro.stream(picture(*size)):
        if isinstance(event, UpscaleResult):
            assert event.tiles == tiles
        else:
            steps.append(progress.update(event))
    assert steps == sorted(steps)
    assert progress.total - progress.done == (tiles > 1)  # the decoder of several tiles has no event: the result is it


def test_missed_and_repeated_events() -> None:
    progress = Progress(STAGES)
    assert progress.total == 4
    assert progress.update(Event("scale.1", 1, 2)) == 3  # the first two were dropped
    assert progress.total == 7  # three of each tile, and the decoder
    assert progress.update(Event("scale.0", 1, 2)) == 3  # run again after a fault
    assert progress.update(Event("condition", 0, 2)) == 4
