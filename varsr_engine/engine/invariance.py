"""Batch-invariant numerics: an image's pixels depend on nothing that shares its batch, bit for bit.

In fast numerics no row of a batch reads another, but how a row is computed follows from the shape of the batch. A CPU's
library multiplies one row by other loops than many, and shares rows among threads. A Triton kernel cuts its tiles, and
splits its sums, by the number of rows; cuBLAS and cuDNN choose their algorithms by shape. So the last bits of an image
may differ with its company, and where two tokens are nearly equal so may a token.

Here every image, or tile, runs by itself, on any device: each kernel sees one shape, at one place, and nothing is left
that a neighbour could change. That holds for the kernels of libraries too, whose choices no switch of ours reaches, and
padding every batch to one size would not give it to engines of different `batch_size`. On a GPU an image is the graph
of one image, captured once; cuDNN takes deterministic algorithms, and does not choose them by their time, which would
differ from start to start. Sums that are split among programs are added up in a fixed order in either numerics.

What it costs is what a batch gains: a weight is read once an image, not once a batch. Several outputs of one input
(`Engine.upscale_samples`) no longer share the tokens' loop. A lone request costs nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from varsr_engine.engine.generation import Generation, Pipeline, Sample
from varsr_engine.engine.nonfinite import not_finite
from varsr_engine.engine.request import BatchRequest
from varsr_engine.errors import NumericalError
from varsr_engine.model.varsr import Trace

Output = TypeVar("Output", Sample, Generation)


class BatchInvariantPipeline(Pipeline):
    """`Pipeline`, image by image. Stages are told for each image in turn."""

    def generate(
        self,
        lr: torch.Tensor | None,
        request: BatchRequest,
        *,
        seeds: torch.Tensor,
        noise: torch.Tensor | None = None,
        **settings: Any,
    ) -> Generation:
        return image_by_image(super().generate, lr, request, seeds, noise, settings)

    def sample(
        self,
        lr: torch.Tensor | None,
        request: BatchRequest,
        *,
        seeds: torch.Tensor,
        noise: torch.Tensor | None = None,
        **settings: Any,
    ) -> Sample:
        return image_by_image(super().sample, lr, request, seeds, noise, settings)

    def _decoded(self, latent: torch.Tensor) -> torch.Tensor:
        decoded = super()._decoded
        return decoded(latent) if len(latent) == 1 else torch.cat([decoded(part) for part in latent.split(1)])


def image_by_image(
    run: Callable[..., Output],
    lr: torch.Tensor | None,
    request: BatchRequest,
    seeds: torch.Tensor,
    noise: torch.Tensor | None,
    settings: dict[str, Any],
) -> Output:
    """run(...) of each output by itself, and the outputs as one batch.

    Raises NumericalError with all rows that are not finite, when the others are done.
    """
    times = seeds.shape[0] // request.batch
    if times > 1:
        request = request.repeat(times, seeds)
        lr = None if lr is None else lr.repeat_interleave(times, dim=0)
    outputs: list[Output] = []
    bad: list[int] = []
    for i, own in enumerate(rows_of(request)):
        row = slice(i, i + 1)
        one = None if lr is None else lr[row]
        drawn = None if noise is None else noise[:, row].contiguous()
        try:
            outputs.append(run(one, own, seeds=seeds[row], noise=drawn, **settings))
        except NumericalError as error:
            bad.append(i)
            tried = error.details["dtypes"]
    if bad:
        raise not_finite(bad, *tried)
    return joined(outputs)


def rows_of(request: BatchRequest) -> Iterator[BatchRequest]:
    """The settings of each image: it takes the argmax if it would alone, whatever the others do."""
    greedy = [True] * request.batch if request.greedy else (request.top_k == 1).tolist()
    for i in range(request.batch):
        yield dataclasses.replace(request.row(i), greedy=greedy[i])


def joined(outputs: Sequence[Output]) -> Output:
    """One batch of outputs of one image each."""
    if len(outputs) == 1:
        return outputs[0]
    values: dict[str, Any] = {}
    for f in dataclasses.fields(outputs[0]):
        column = [getattr(output, f.name) for output in outputs]
        if isinstance(column[0], torch.Tensor):
            values[f.name] = torch.cat(column)
        elif isinstance(column[0], Trace):
            values[f.name] = joined_trace(column)
    seconds: dict[str, float] = {}
    for output in outputs:
        for stage, value in output.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + value
    values |= {"seconds": seconds, "again": [i for i, output in enumerate(outputs) if output.again]}
    if isinstance(outputs[0], Generation):
        values["seeds"] = [seed for output in outputs for seed in output.seeds]
    return dataclasses.replace(outputs[0], **values)


def joined_trace(traces: Sequence[Trace]) -> Trace:
    values: dict[str, Any] = {}
    for f in dataclasses.fields(Trace):
        column = [getattr(trace, f.name) for trace in traces]
        if isinstance(column[0], list):
            values[f.name] = [torch.cat(parts) for parts in zip(*column, strict=True)]
        elif column[0] is not None:
            values[f.name] = torch.cat(column)
    if values.get("z") is not None:  # [conditional rows][unconditional rows], of each image a pair, or one row
        values["z"] = values["z"].unflatten(0, (len(traces), -1)).transpose(0, 1).flatten(0, 1)
    return Trace(**values)
