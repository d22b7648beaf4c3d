"""The queue on the real engine: the pixels of blocking calls, whatever shares a batch."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.test_tiling import engine_of, picture, same
from tests.numerics import relative_error
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.result import UpscaleResult
from varsr_engine.engine.scheduling import Event
from varsr_engine.errors import (
    DeadlineExceededError,
    DrainingError,
    InvalidParamsError,
    NumericalError,
    QueueFullError,
    RequestCancelled,
    ResourceExhaustedError,
)

SMALL, LARGE = (8, 8), (20, 13)  # of one tile, and of six


@pytest.fixture
def inline() -> Engine:
    """An engine whose queue the test works off by itself."""
    return engine_of(threaded=False, batch_size=4)


def near(a: UpscaleResult, b: UpscaleResult) -> bool:
    return relative_error(a.tensor, b.tensor) <= 1e-5 and (a.seed, a.tiles, a.size) == (b.seed, b.tiles, b.size)


def test_mixed_images_share_batches_and_keep_their_pixels(inline: Engine) -> None:
    sources = [picture(*size, seed=n) for n, size in enumerate([SMALL, LARGE, SMALL, (7, 5), (16, 9)])]
    settings: list[dict[str, Any]] = [{"seed": n, "cfg": 1.0 + n} for n in range(len(sources))]
    handles = [inline.submit(source, **own) for source, own in zip(sources, settings, strict=True)]
    results = [handle.result() for handle in handles]
    for source, own, result in zip(sources, settings, results, strict=True):
        assert near(result, inline.upscale(source, **own))
    stats = inline.stats()
    assert stats.completed == 5 and max(stats.batch_sizes) > 1 and stats.queued_units == 0


def test_other_settings_that_change_the_program_do_not_share(inline: Engine) -> None:
    source = picture(*SMALL)
    variants: list[dict[str, Any]] = [{}, {"steps": 3}, {"refiner": "off"}, {"top_k": 5, "seed": 2}, {"alpha": "drop"}]
    handles = [inline.submit(source, **own) for own in variants]
    for own, handle in zip(variants, handles, strict=True):
        assert near(handle.result(), inline.upscale(source, **own))
    assert inline.stats().batch_sizes == {1: 3, 2: 1}


@pytest.mark.parametrize("tile", ["auto", "published", "off"])
def test_alone_as_blocking_bit_for_bit(tile: str) -> None:
    with engine_of(batch_size=1) as engine:
        for size in (SMALL, LARGE):
            queued = engine.submit(picture(*size), seed=4, tile=tile).result()
            assert same(queued, engine.upscale(picture(*size), seed=4, tile=tile))
        whole, floats = (engine.submit(picture(*LARGE), seed=4, tile=t).result() for t in ("published", "auto"))
        assert not same(whole, floats)  # whose tiles are resized in 8 bits, and in float


def test_async_and_streaming() -> None:
    with engine_of() as engine:
        source, expected = picture(*SMALL), engine.upscale(picture(*SMALL))

        async def both() -> tuple[UpscaleResult, list[Any]]:
            return await engine.aupscale(source), [event async for event in engine.astream(source)]

        result, events = asyncio.run(both())
        assert near(result, expected)
        stages = [event.stage for event in events if isinstance(event, Event)]
        assert stages == engine._pipeline.stages(prefix=True, refine=True) and near(events[-1], expected)
        blocking = list(engine.stream(source))
        assert near(blocking[-1], expected)
        assert [e.stage for e in blocking[:-1] if isinstance(e, Event)] == stages


def test_leaving_a_stream_cancels_it() -> None:
    with engine_of() as engine:
        for event in engine.stream(picture(*LARGE)):
            assert isinstance(event, Event)
            break
        gc.collect()
        assert engine.drain(30) and engine.stats().cancelled == 1
        with pytest.raises(DrainingError):
            engine.submit(picture(*SMALL))


def test_cancel_and_deadline(inline: Engine) -> None:
    cancelled, late, good = (inline.submit(picture(*SMALL), deadline_s=s) for s in (None, 0.0, 600))
    assert cancelled.cancel()
    assert good.result().size == (32, 32)
    with pytest.raises(RequestCancelled):
        cancelled.result()
    with pytest.raises(DeadlineExceededError):
        late.result()


def test_a_bad_image_fails_alone(inline: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose decoder gives NaN, in a batch of four."""
    sources = [picture(*SMALL, seed=n) for n in range(4)]
    decoded = inline._pipeline._decoded

    def poisoned(latent: torch.Tensor) -> torch.Tensor:
        images = decoded(latent)
        images[latent[:, 0, 0, 0] == marked] = float("nan")
        return images

    side = inline.model_config.image_side
    marked = inline.generate(torch.zeros(1, 3, side, side)).latent[0, 0, 0, 0]
    black = np.full((8, 8, 3), 127.5, np.float32) / 255  # the network's 0
    monkeypatch.setattr(inline._pipeline, "_decoded", poisoned)
    handles = [inline.submit(source) for source in sources[:2]]
    bad = inline.submit(black)
    handles.append(inline.submit(sources[2]))
    assert [handle.result().size for handle in handles] == [(32, 32)] * 3
    with pytest.raises(NumericalError):
        bad.result()


def test_memory_that_does_not_suffice_halves_the_batch(inline: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = inline._pipeline.generate
    batches: list[int] = []

    def bounded(lr: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        batches.append(lr.shape[0])
        if lr.shape[0] > 1:
            raise torch.OutOfMemoryError("no")
        return generate(lr, *args, **kwargs)

    monkeypatch.setattr(inline._pipeline, "generate", bounded)
    handles = [inline.submit(picture(*SMALL, seed=n)) for n in range(4)]
    assert all(handle.result().size == (32, 32) for handle in handles)
    assert batches[:3] == [4, 2, 1]
    monkeypatch.setattr(inline._pipeline, "generate", lambda *a, **k: bounded(torch.zeros(2)))
    with pytest.raises(ResourceExhaustedError):
        inline.submit(picture(*SMALL)).result()


def test_the_queue_is_bounded() -> None:
    engine = engine_of(threaded=False, max_queued_tiles=7)
    engine.submit(picture(*LARGE))
    engine.submit(picture(*SMALL))
    with pytest.raises(QueueFullError):
        engine.submit(picture(*SMALL))
    with pytest.raises(InvalidParamsError):
        engine.submit(picture(*SMALL), label=99)  # said at once, not by the batch
    assert engine.drain(60)


def test_threads_may_mix_blocking_and_queued_calls() -> None:
    with engine_of() as engine:
        sources = [picture(*(SMALL if n % 3 else LARGE), seed=n) for n in range(8)]
        expected = [engine.upscale(source) for source in sources]

        def call(n: int) -> UpscaleResult:
            return engine.upscale(sources[n]) if n % 2 else engine.submit(sources[n]).result()

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(call, range(8)))
        assert all(near(a, b) for a, b in zip(results, expected, strict=True))


def test_nothing_is_left_behind() -> None:
    """No thread after close, and no pixels of a finished request in the engine."""
    before = threading.active_count()
    engine = engine_of()
    handle = engine.submit(picture(*LARGE))
    result = handle.result()
    pixels = weakref.ref(result.picture.rgb)
    assert engine.health().ok
    del handle, result
    for _ in range(50):
        gc.collect()
        if pixels() is None:
            break
        time.sleep(0.02)
    assert pixels() is None
    engine.close(10)
    assert threading.active_count() == before and not engine.health().ok
    assert engine.upscale(picture(*SMALL)).size == (32, 32)
