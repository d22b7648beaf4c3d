"""The engine as a diffusers pipeline: `VarsrPipeline.from_pretrained(model)(image).images[0]`.

Needs diffusers: pip install 'varsr-engine[diffusers]'. Unlike other pipelines it may be called from several threads at
once: their images share batches, and callbacks and interrupts stay with their call.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image

from varsr_engine.checkpoint import DTYPES, convert_checkpoint
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.params import MAX_SEED, EngineConfig, PreviewMode, UpscaleParams
from varsr_engine.engine.preview import Preview
from varsr_engine.engine.result import UpscaleResult
from varsr_engine.engine.scheduling import Event, Handle
from varsr_engine.errors import InvalidParamsError, QueueFullError
from varsr_engine.imaging import ImageLike
from varsr_engine.integrations.progress import Progress
from varsr_engine.packaged import default_model

OUTPUT_TYPES = ("pil", "np", "pt")
Generators = torch.Generator | Sequence[torch.Generator]
# callback(pipeline, step, timestep, tensors): what it returns is not used
OnStepEnd = Callable[["VarsrPipeline", int, int, dict[str, Any]], Any]


@dataclass
class VarsrPipelineOutput(BaseOutput):
    """images: PIL images; or one array (N, H, W, 3), one tensor (N, 3, H, W), in [0, 1], lists where sizes differ.

    seeds: of each image, which reproduce it.
    """

    images: Any
    seeds: list[int]


class VarsrPipeline(DiffusionPipeline):
    """Super-resolution with the interface of diffusers' pipelines. Has no components: the engine is one piece."""

    _callback_tensor_inputs = ["preview"]  # noqa: RUF012  # as in every pipeline

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.register_to_config(_name_or_path=engine.model_id)
        self.engine = engine
        self._source: tuple[str, str | None, bool] | None = None
        self._calls: list[_Call] = []  # those that run, of all threads
        self._calls_lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        *,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Self:
        """Load a model as `Engine.from_pretrained` does: a folder, a file, a hub id, or "varsr-mini".

        device: where it runs from the start, a GPU if there is one; `to` moves it. overrides: fields of EngineConfig.
        Raises ModelLoadError and its kinds, InvalidParamsError.
        """
        if device is not None:
            overrides["device"] = str(device)
        if torch_dtype is not None:
            overrides["dtype"] = dtype_name(torch_dtype)
        config = EngineConfig.resolve(**overrides)
        source = default_model(pretrained_model_name_or_path), revision, local_files_only
        pipeline = cls(opened(source, config))
        pipeline._source = source
        return pipeline

    def save_pretrained(self, save_directory: str | os.PathLike[str], **_: Any) -> None:
        """Write the model as one folder that `from_pretrained` reads; other arguments of diffusers are not used."""
        convert_checkpoint(self._known_source("save")[0], save_directory)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move to a device, a dtype, or both: the model is loaded again there. Calls that run end where they are."""
        changes: dict[str, Any] = {}
        for value in (*args, *(kwargs.get(name) for name in ("device", "dtype"))):
            if isinstance(value, torch.dtype):
                changes["dtype"] = dtype_name(value)
            elif value is not None and not isinstance(value, bool):  # diffusers takes flags by position too
                changes["device"] = str(value)
        old = self.engine
        same = ("device" not in changes or torch.device(changes["device"]) == old.device) and (
            "dtype" not in changes or DTYPES[changes["dtype"]] == old.dtype
        )
        if not same:
            self.engine = opened(self._known_source("move"), dataclasses.replace(old.config, **changes))
        return self

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @property
    def dtype(self) -> torch.dtype:
        return self.engine.dtype

    @property
    def components(self) -> dict[str, Any]:
        return {}

    @property
    def _interrupt(self) -> bool:
        """Whether the caller's own call shall stop; from outside of one: whether any shall."""
        with self._calls_lock:
            own = [call for call in self._calls if call.thread == threading.get_ident()] or self._calls
            return any(call.interrupted for call in own)

    @_interrupt.setter
    def _interrupt(self, value: bool) -> None:
        """In a callback: of that call. From another thread: of all that run."""
        with self._calls_lock:
            for call in [c for c in self._calls if c.thread == threading.get_ident()] or self._calls:
                call.interrupted = value

    def __call__(
        self,
        image: ImageLike | Sequence[ImageLike],
        scale: float | None = None,
        generator: Generators | None = None,
        num_images_per_prompt: int = 1,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: OnStepEnd | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = (),
        *,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        **params: Any,
    ) -> VarsrPipelineOutput | tuple[Any, ...]:
        """Upscale one image, a list of images, or a batch (N, 3, H, W) or (N, H, W, 3); see `ImageLike`.

        scale: 4 if neither it nor another size is given. generator: gives its `initial_seed`, one for all images
        (they take the seeds that follow it) or one an image; its state is not used, so that a call with it can be
        repeated. None draws seeds. num_images_per_prompt: images of each input. output_type: pil keeps alpha and gray;
        np and pt are RGB.
        callback_on_step_end(pipeline, step, step, {"preview": (3, h, w) in [0, 1]}) is called after each stage, in this
        thread, with what callback_on_step_end_tensor_inputs names; the preview is of the whole image as it is so far,
        None after stages that show nothing.
        `pipeline._interrupt = True` ends the call with the images that are done.
        guidance_scale, num_inference_steps, params: cfg, steps (of the refiner) and other fields of UpscaleParams.
        Raises InputError and its kinds.
        """
        if output_type not in OUTPUT_TYPES:
            raise InvalidParamsError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise InvalidParamsError(
                f"callback_on_step_end_tensor_inputs must be in {self._callback_tensor_inputs}, got {sorted(unknown)}"
            )
        previews: PreviewMode = "latent" if "preview" in callback_on_step_end_tensor_inputs else "none"
        settings = UpscaleParams(scale=scale, cfg=guidance_scale, steps=num_inference_steps, previews=previews)
        settings = settings.replace(**params)
        inputs = [one for one in images_of(image) for _ in range(num_images_per_prompt)]
        seeds = seeds_of(generator, len(inputs))
        jobs = [(one, settings.replace(seed=seed)) for one, seed in zip(inputs, seeds, strict=True)]
        with self._running(callback_on_step_end, callback_on_step_end_tensor_inputs) as call:
            results = call.results(self.engine, jobs)
        images = collected(results, output_type)
        seeds = [result.seed for result in results]
        return VarsrPipelineOutput(images=images, seeds=seeds) if return_dict else (images, seeds)

    def close(self) -> None:
        """End the engine's thread. The next call starts it again."""
        self.engine.close()

    @contextmanager
    def _running(self, callback: OnStepEnd | None, tensors: Sequence[str]) -> Iterator[_Call]:
        call = _Call(self, callback, tensors)
        with self._calls_lock:
            self._calls.append(call)
        try:
            yield call
        finally:
            with self._calls_lock:
                self._calls.remove(call)

    def _known_source(self, what: str) -> tuple[str, str | None, bool]:
        if self._source is None:
            raise InvalidParamsError(f"cannot {what} a pipeline made from an engine; make it with from_pretrained")
        return self._source


class _Call:
    """One call of the pipeline: what it counts, and whether it was interrupted."""

    def __init__(self, pipeline: VarsrPipeline, callback: OnStepEnd | None, tensors: Sequence[str]) -> None:
        self.thread = threading.get_ident()
        self.interrupted = False
        self._pipeline, self._callback, self._tensors = pipeline, callback, tensors

    def results(self, engine: Engine, jobs: Sequence[tuple[ImageLike, UpscaleParams]]) -> list[UpscaleResult]:
        """Of all jobs, in order; of those that were done, if interrupted."""
        results: list[UpscaleResult] = []
        handles: list[Handle[UpscaleResult]] = []
        before = 0
        try:
            with self._pipeline.progress_bar(total=len(jobs)) as bar:
                for place, (_, params) in enumerate(jobs):
                    self._submit_ahead(engine, jobs, place, handles)
                    progress = Progress(engine.stages(engine.params_of(params, {})))
                    for event in handles[place].events():
                        if isinstance(event, UpscaleResult):
                            results.append(event)
                        else:
                            self._step(before + progress.update(event) - 1, event)
                        if self.interrupted:
                            return results
                    before += progress.total
                    bar.update(1)
        finally:
            for handle in handles:
                handle.cancel()
        return results

    @staticmethod
    def _submit_ahead(
        engine: Engine,
        jobs: Sequence[tuple[ImageLike, UpscaleParams]],
        place: int,
        handles: list[Handle[UpscaleResult]],
    ) -> None:
        """Queue the job at `place` if it is not yet, and those behind it that fill a batch, while there is room."""
        for image, params in jobs[len(handles) : place + max(1, engine.largest_batch)]:
            try:
                handles.append(engine.submit(image, params, events=True))
            except QueueFullError:
                if len(handles) <= place:
                    raise
                return

    def _step(self, step: int, event: Event) -> None:
        if self._callback is None:
            return
        preview = None if event.preview is None else preview_tensor(event.preview)
        self._callback(self._pipeline, step, step, dict.fromkeys(self._tensors, preview))


def opened(source: tuple[str, str | None, bool], config: EngineConfig) -> Engine:
    model, revision, local = source
    return Engine.from_pretrained(model, revision=revision, local_files_only=local, config=config)


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in EngineConfig. Raises InvalidParamsError."""
    for name, known in DTYPES.items():
        if dtype == known:
            return name
    raise InvalidParamsError(f"torch_dtype must be one of {', '.join(map(str, DTYPES.values()))}, got {dtype}")


def images_of(image: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """The images of a list or of a batch."""
    if isinstance(image, (np.ndarray, torch.Tensor)) and image.ndim == 4:
        return list(image)
    if isinstance(image, (list, tuple)):
        return list(image)
    return [image]  # type: ignore[list-item]  # a sequence that is an image: bytes, a path


def seeds_of(generator: Generators | None, count: int) -> list[int]:
    """`count` seeds: drawn, those that follow one generator's, or one of each generator."""
    if generator is None:
        return [secrets.randbelow(MAX_SEED + 1) for _ in range(count)]
    if isinstance(generator, torch.Generator):
        return [(generator.initial_seed() + i) & MAX_SEED for i in range(count)]
    if len(generator) != count:
        raise InvalidParamsError(f"generator must be one, or one for each of {count} images, got {len(generator)}")
    return [one.initial_seed() & MAX_SEED for one in generator]


def preview_tensor(preview: Preview) -> torch.Tensor:
    """(3, h, w) float32 in [0, 1]."""
    return torch.from_numpy(np.asarray(preview.image).copy()).permute(2, 0, 1).float() / 255


def collected(results: Sequence[UpscaleResult], output_type: str) -> Any:
    """Images as the output type says; one array or tensor where they have one size."""
    if output_type == "pil":
        pictures: list[Image.Image] = [result.image for result in results]
        return pictures
    same = len({result.size for result in results}) == 1
    if output_type == "pt":
        tensors = [result.tensor for result in results]
        return torch.stack(tensors) if same else tensors
    arrays = [result.picture.rgb for result in results]
    return np.stack(arrays) if same else arrays
