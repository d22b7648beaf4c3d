"""Images that nobody waits for: done one after the other, their results on disk until they are fetched or too old.

Jobs do not go through the engine's queue: `Engine.upscale_to` writes a PNG while it is decoded, so that a picture far
larger than memory would hold comes out, and takes turns with the queue's batches.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import secrets
import threading
import time
from pathlib import Path
from typing import Literal

from varsr_engine.engine.engine import Engine
from varsr_engine.engine.params import UpscaleParams
from varsr_engine.engine.result import UpscaleReport
from varsr_engine.errors import RequestCancelled, VarsrError
from varsr_engine.serving.budget import Hold
from varsr_engine.serving.errors import BusyError, NotFoundError
from varsr_engine.serving.images import Format, Planned
from varsr_engine.serving.job_folder import JobFolder
from varsr_engine.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

Status = Literal["queued", "running", "succeeded", "failed"]
MAX_RESULT_BYTES = 8 * 1024**3  # of all results together


class Job:
    """One image. Its fields are written by the worker, and read by everybody."""

    def __init__(
        self, engine: Engine, data: bytes, params: UpscaleParams, planned: Planned, format: Format, quality: int
    ) -> None:
        self.id = secrets.token_urlsafe(16)
        self.status: Status = "queued"
        self.planned, self.format, self.quality = planned, format, quality
        self.params = params
        self.created = time.time()
        self.finished: float | None = None
        self.stage: str | None = None
        self.tiles_done = 0
        self.report: UpscaleReport | None = None
        self.error: BaseException | None = None
        self.path: Path | None = None  # of the result
        self.size = 0  # of the result in bytes
        self.cancelled = threading.Event()
        self._engine, self._data = engine, data

    def run(self, folder: Path) -> None:
        """Upscale into the folder. Raises RequestCancelled after `cancelled` is set, at the next stage or rows."""
        path = folder / f"{self.id}.{self.format}"
        data, self._data = self._data, b""

        def on_stage(stage: str) -> None:
            self._check()
            self.stage = stage

        def on_tiles(done: int, _: int) -> None:
            self._check()
            self.tiles_done = done

        def on_rows(done: int, _: int) -> None:
            self._check()

        self._check()
        self.report, _ = self._engine.upscale_to(
            data, path, self.params, quality=self.quality, on_stage=on_stage, on_tiles=on_tiles, on_rows=on_rows
        )
        self.tiles_done = self.report.tiles
        self.size = path.stat().st_size
        self.path = path

    def _check(self) -> None:
        if self.cancelled.is_set():
            raise RequestCancelled("the job was cancelled")

    @property
    def done(self) -> bool:
        return self.status in ("succeeded", "failed")

    def forget(self) -> None:
        """Delete the result, and what was sent."""
        self._data = b""
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()


class JobStore:
    """Jobs by id. One thread runs them, started by the first; all methods may be called from any thread."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}  # in order of creation
        self._holds: dict[str, Hold] = {}
        self._waiting: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._folder: JobFolder | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, job: Job, hold: Hold) -> None:
        """Queue a job; `hold` is released when it ends. Raises BusyError where too many are unfinished."""
        self.sweep()
        with self._lock:
            unfinished = sum(not other.done for other in self._jobs.values())
            if self._closed or unfinished >= self._settings.max_jobs:
                raise BusyError(f"{unfinished} jobs are unfinished, the most that the server takes", retry_after_s=30)
            if self._folder is None:
                self._folder = JobFolder(self._settings.job_folder)
            self._jobs[job.id], self._holds[job.id] = job, hold
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, args=(self._folder,), name="varsr-jobs", daemon=True)
                self._thread.start()
        self._waiting.put(job)

    def get(self, id: str) -> Job:
        """Raises NotFoundError for a job that is not there, or not there any more."""
        self.sweep()
        job = self._jobs.get(id)
        if job is None:
            raise NotFoundError("no such job: it never was, was deleted, or is too old")
        return job

    def remove(self, id: str) -> None:
        """Cancel a job, and forget it with its result."""
        job = self.get(id)
        with self._lock:
            self._jobs.pop(id, None)
        self._end(job)

    def sweep(self) -> None:
        """Forget finished jobs that are too old, too many, or too large together: the oldest first."""
        with self._lock:
            finished = sorted((j for j in self._jobs.values() if j.done), key=lambda j: j.finished or 0.0, reverse=True)
            kept_bytes, outdated = 0, []
            for rank, job in enumerate(finished):
                kept_bytes += job.size
                old = time.time() - (job.finished or 0.0) > self._settings.job_ttl
                many = rank >= self._settings.max_finished_jobs
                if old or many or (rank > 0 and kept_bytes > MAX_RESULT_BYTES):
                    outdated.append(self._jobs.pop(job.id))
        for job in outdated:
            job.forget()

    def counts(self) -> dict[str, int]:
        """How many jobs are in each status."""
        statuses = [job.status for job in list(self._jobs.values())]
        return {status: statuses.count(status) for status in ("queued", "running", "succeeded", "failed")}

    def cancel_all(self) -> None:
        """End what is unfinished, and take nothing new."""
        with self._lock:
            self._closed = True
            unfinished = [job for job in self._jobs.values() if not job.done]
        for job in unfinished:
            self._end(job)

    def close(self) -> None:
        """Cancel all jobs and delete all results."""
        self.cancel_all()
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join(2)  # a decoding picture is not waited for: the thread is a daemon
        if self._folder is not None:
            self._folder.delete()

    def _end(self, job: Job) -> None:
        job.cancelled.set()
        if job.status != "running":
            self._release(job)
            job.forget()

    def _release(self, job: Job) -> None:
        with self._lock:
            hold = self._holds.pop(job.id, None)
        if hold is not None:
            hold.release()

    def _work(self, folder: JobFolder) -> None:
        while (job := self._waiting.get()) is not None:
            try:
                job.status = "running"
                job.run(folder.path)
                status: Status = "succeeded"
            except VarsrError as error:
                job.error, status = error, "failed"
            except BaseException as error:
                logger.exception("job %s failed", job.id)
                job.error, status = error, "failed"
            job.finished = time.time()
            job.status = status
            self._release(job)
            if job.cancelled.is_set():
                job.forget()
            self.sweep()
