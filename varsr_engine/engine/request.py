"""One batch at the tensor level: what differs between its images is data, never control flow."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from varsr_engine.config import ModelConfig
from varsr_engine.engine.params import MAX_SEED, is_integer, is_number
from varsr_engine.errors import InvalidParamsError

PerImage = float | Sequence[float] | torch.Tensor


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """Settings of B images, each a tensor with one value an image, on the device."""

    labels: torch.Tensor  # (B,) int64
    guidance: torch.Tensor  # (B,) float32
    seeds: torch.Tensor  # (B,) int64
    top_k: torch.Tensor  # (B,) int64
    top_p: torch.Tensor  # (B,) float32
    temperature: torch.Tensor  # (B,) float32
    refiner_temperature: torch.Tensor  # (B,) float32
    origins: torch.Tensor  # (B, 2) int64: row and column of the first latent cell in the whole image's latent
    greedy: bool  # all take the argmax: no sorting, no noise

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All values an image, in the order of the fields: what a graph reads anew at each replay."""
        return tuple(getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "greedy")

    def with_tensors(self, values: Sequence[torch.Tensor]) -> BatchRequest:
        """The same with the values of `tensors`."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "greedy"]
        return dataclasses.replace(self, **dict(zip(names, values, strict=True)))  # type: ignore[arg-type]

    @property
    def batch(self) -> int:
        return self.labels.shape[0]

    def to(self, device: torch.device) -> BatchRequest:
        return self.with_tensors([t.to(device) for t in self.tensors()])

    def row(self, index: int) -> BatchRequest:
        """The settings of one image."""
        return self.with_tensors([t[index : index + 1] for t in self.tensors()])

    @staticmethod
    def joined(requests: Sequence[BatchRequest]) -> BatchRequest:
        """One batch of several, in order: all greedy, or none."""
        values = [torch.cat(column) for column in zip(*(r.tensors() for r in requests), strict=True)]
        return requests[0].with_tensors(values)

    def repeat(self, times: int, seeds: torch.Tensor) -> BatchRequest:
        """Every image `times` times in a row, with new seeds (B * times,)."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                values[name] = value.repeat_interleave(times, dim=0)
        return BatchRequest(**(values | {"seeds": seeds}))


def per_image(name: str, value: PerImage, batch: int, low: float, high: float, integer: bool) -> list[float]:
    """`value`, one number or one an image, as a list of `batch` numbers in [low, high]."""
    values = value.tolist() if isinstance(value, torch.Tensor) else value
    values = list(values) if isinstance(values, (list, tuple, range)) else [values] * batch
    if len(values) != batch:
        raise InvalidParamsError(f"{name} must be one value or one an image ({batch}), got {len(values)} values")
    for v in values:
        ok = is_integer(v, int(low), high) if integer else is_number(v) and low <= v <= high
        if not ok:
            kind = "an integer" if integer else "a number"
            raise InvalidParamsError(f"{name} must be {kind} in [{low}, {high}], got {v!r}")
    return values


def batch_request(
    config: ModelConfig,
    batch: int,
    device: torch.device,
    *,
    labels: PerImage,
    guidance_scale: PerImage | None,
    seeds: PerImage,
    top_k: PerImage | None,
    top_p: PerImage | None,
    temperature: PerImage,
    refiner_temperature: PerImage | None = None,
    origins: Sequence[tuple[int, int]] | None = None,
) -> BatchRequest:
    """Validate settings, fill in the model's defaults and move them to the device. origins: (0, 0) where None."""

    def numbers(name: str, value: PerImage, low: float, high: float) -> torch.Tensor:
        values = per_image(name, value, batch, low, high, integer=False)
        return torch.tensor(values, dtype=torch.float32, device=device)

    def integers(name: str, value: PerImage, low: int, high: int) -> torch.Tensor:
        return torch.tensor(per_image(name, value, batch, low, high, integer=True), dtype=torch.int64, device=device)

    guidance = numbers("guidance_scale", config.guidance_scale if guidance_scale is None else guidance_scale, 0, 1e4)
    noise = config.refiner_temperature if refiner_temperature is None else refiner_temperature
    places = [(0, 0)] * batch if origins is None else list(origins)
    limit = integers("top_k", config.top_k if top_k is None else top_k, 0, 2**31)
    return BatchRequest(
        labels=integers("labels", labels, 0, config.class_rows - 1),
        guidance=guidance,
        seeds=integers("seed", seeds, 0, MAX_SEED),
        top_k=limit,
        top_p=numbers("top_p", config.top_p if top_p is None else top_p, 1e-6, 1),
        temperature=numbers("temperature", temperature, 1e-6, 1e6),
        refiner_temperature=numbers("refiner_temperature", noise, 0, 1e3),
        origins=torch.tensor(places, dtype=torch.int64, device=device).view(batch, 2),
        greedy=bool((limit == 1).all()),
    )
