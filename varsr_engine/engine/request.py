"""One batch at the tensor level: what differs between its images is data, never control flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    greedy: bool  # all take the argmax: no sorting, no noise

    @property
    def batch(self) -> int:
        return self.labels.shape[0]

    def repeat(self, times: int, seeds: torch.Tensor) -> BatchRequest:
        """Every image `times` times in a row, with new seeds (B * times,)."""
        labels, guidance, top_k, top_p, temperature = (
            t.repeat_interleave(times, dim=0)
            for t in (self.labels, self.guidance, self.top_k, self.top_p, self.temperature)
        )
        return BatchRequest(labels, guidance, seeds, top_k, top_p, temperature, self.greedy)


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
) -> BatchRequest:
    """Validate settings, fill in the model's defaults and move them to the device."""

    def numbers(name: str, value: PerImage, low: float, high: float) -> torch.Tensor:
        values = per_image(name, value, batch, low, high, integer=False)
        return torch.tensor(values, dtype=torch.float32, device=device)

    def integers(name: str, value: PerImage, low: int, high: int) -> torch.Tensor:
        return torch.tensor(per_image(name, value, batch, low, high, integer=True), dtype=torch.int64, device=device)

    guidance = numbers("guidance_scale", config.guidance_scale if guidance_scale is None else guidance_scale, 0, 1e4)
    limit = integers("top_k", config.top_k if top_k is None else top_k, 0, 2**31)
    return BatchRequest(
        labels=integers("labels", labels, 0, config.class_rows - 1),
        guidance=guidance,
        seeds=integers("seed", seeds, 0, MAX_SEED),
        top_k=limit,
        top_p=numbers("top_p", config.top_p if top_p is None else top_p, 1e-6, 1),
        temperature=numbers("temperature", temperature, 1e-6, 1e6),
        greedy=bool((limit == 1).all()),
    )
