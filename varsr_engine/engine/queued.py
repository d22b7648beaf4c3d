"""Upscaling through a queue: from any thread or event loop, tiles of many images a batch."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Any, Self

import torch

from varsr_engine.engine.jobs import TileRunner, UpscaleJob
from varsr_engine.engine.params import UpscaleParams
from varsr_engine.engine.pictures import PictureEngine
from varsr_engine.engine.request import BatchRequest, batch_request
from varsr_engine.engine.result import UpscaleResult
from varsr_engine.engine.scale_loop import OnScale, OnStage
from varsr_engine.engine.scheduling import Event, Handle, Health, Scheduler, Stats
from varsr_engine.engine.tiling import TileGrid
from varsr_engine.imaging import ImageLike


class QueuedEngine(PictureEngine):
    """An engine that takes requests from many callers. One engine thread runs them, started by the first.

    A batch is whatever waits when the device is free; a large image gives way to small ones between its tiles. With
    EngineConfig(threaded=False) there is no thread: `step`, or whoever waits for a result, runs them.
    """

    _scheduler: Scheduler | None = None

    def submit(
        self,
        image: ImageLike,
        params: UpscaleParams | None = None,
        /,
        *,
        deadline_s: float | None = None,
        events: bool = False,
        **changes: Any,
    ) -> Handle[UpscaleResult]:
        """Queue one image: a handle to wait on, to await, or to cancel. The image is read here, in the caller's thread.

        deadline_s: seconds from now after which the request fails with DeadlineExceededError. events: whether the
        handle tells of stages (`stream`), and shows the previews that are asked for. Raises InputError and its kinds,
        QueueFullError, DrainingError.
        """
        params = self.params_of(params, changes)
        if not events:  # nobody looks
            params = params.replace(previews="none")
        picture = self.read(image, params)
        job = UpscaleJob(self, picture, self.grid_of(picture, params), params, self.seed_of(params))
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        return self.scheduler.submit(job, deadline=deadline, events=events)

    async def aupscale(
        self, image: ImageLike, params: UpscaleParams | None = None, /, **settings: Any
    ) -> UpscaleResult:
        """`submit`, awaited; cancelling the task cancels the request."""
        return await self.submit(image, params, **settings)

    def stream(
        self, image: ImageLike, params: UpscaleParams | None = None, /, **settings: Any
    ) -> Iterator[Event | UpscaleResult]:
        """An Event a tile and stage as they pass, then the result. Leaving the loop early cancels the request.

        With UpscaleParams.previews, `Event.preview` is a `Preview` of the whole picture after each scale and the
        refiner. A slow consumer misses the oldest events, never the result.
        """
        handle = self.submit(image, params, events=True, **settings)
        try:
            yield from handle.events()
        finally:
            handle.cancel()

    async def astream(
        self, image: ImageLike, params: UpscaleParams | None = None, /, **settings: Any
    ) -> AsyncIterator[Event | UpscaleResult]:
        """`stream` for an event loop."""
        handle = self.submit(image, params, events=True, **settings)
        try:
            async for event in handle.aevents():
                yield event
        finally:
            handle.cancel()

    # --- the queue's life

    def step(self) -> bool:
        """With threaded=False: run one batch, or finish one image; False if there was nothing to do."""
        return self.scheduler.step()

    def drain(self, timeout: float | None = None) -> bool:
        """Take no new requests, and wait for those that were taken; False if `timeout` seconds did not suffice."""
        return self.scheduler.drain(timeout)

    def close(self, timeout: float | None = None) -> None:
        """Cancel what waits in the queue, and end its thread. The blocking calls go on working."""
        self.scheduler.close(timeout)

    def health(self) -> Health:
        """Whether what the queue took will be answered. Never waits for the device."""
        return self.scheduler.health()

    def stats(self) -> Stats:
        """Counts of the queue: requests by outcome, tiles that wait, batch sizes, busy seconds."""
        return self.scheduler.stats()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def scheduler(self) -> Scheduler:
        """Made at its first use: an engine that only ever blocks has none."""
        with _MAKING:
            if self._scheduler is None:
                self._scheduler = Scheduler(
                    TileRunner(self),
                    max_queued_units=self.config.max_queued_tiles,
                    threaded=self.config.threaded,
                    stall_seconds=self.config.stall_seconds,
                )
            return self._scheduler

    # --- for jobs

    def requests_of(self, grid: TileGrid | None, params: UpscaleParams, seed: int) -> BatchRequest:
        """The validated settings of all tiles of an image, on the CPU: batches are joined there."""
        config, tiles = self.model_config, [(0, 0)] if grid is None else grid.origins
        guidance = config.guidance_scale_tiled if params.cfg is None and grid is not None else params.cfg
        return batch_request(
            config,
            len(tiles),
            torch.device("cpu"),
            guidance_scale=guidance,
            seeds=[seed] * len(tiles),
            origins=tiles,
            **self._settings(params),
        )

    def run_tiles(
        self,
        lr: torch.Tensor,
        request: BatchRequest,
        decoded: bool,
        steps: int | None,
        refine: bool,
        scales: int | None,
        guided: int | None,
        on_stage: OnStage,
        on_latent: OnScale | None,
    ) -> tuple[torch.Tensor, dict[str, float], list[int]]:
        """Images (n, 3, S, S) in [0, 1] on the CPU if `decoded`, else latents (n, Z, p, p); seconds by stage; and the
        rows that were run again in float32."""
        with self._running(f"a batch of {request.batch} tiles", request.batch):
            request = request.to(self.device)
            settings: dict[str, Any] = {"seeds": request.seeds, "steps": steps, "refine": refine, "scales": scales}
            settings |= {"guided": guided, "on_stage": on_stage, "on_latent": on_latent}
            if decoded:
                generation = self._pipeline.generate(lr.to(self.device), request, **settings)
                return generation.images.cpu(), generation.seconds, generation.again
            sample = self._pipeline.sample(lr.to(self.device), request, **settings)
            return sample.latent, sample.seconds, sample.again


_MAKING = threading.Lock()  # of schedulers: two threads' first requests must not make two
