"""Presets: named settings that trade exactness for speed. What they cost is measured in docs/presets.md."""

from __future__ import annotations

from typing import NamedTuple

from varsr_engine.config import ModelConfig
from varsr_engine.engine.params import UpscaleParams


class Preset(NamedTuple):
    """Settings that fit any model."""

    steps: int | None  # of the refiner, at most the model's; None: the model's
    unguided: int  # how many of the last scales run without guidance


PRESETS = {
    "quality": Preset(steps=None, unguided=0),
    "balanced": Preset(steps=5, unguided=0),
    "fast": Preset(steps=3, unguided=1),
}


def with_preset(params: UpscaleParams, config: ModelConfig) -> UpscaleParams:
    """The settings, with what their preset chooses for a model where they say nothing themselves."""
    preset = PRESETS[params.preset]
    steps, guided = params.steps, params.guided_scales
    if steps is None and preset.steps is not None:
        steps = min(preset.steps, config.refiner_steps)
    if guided is None and preset.unguided > 0:
        guided = max(0, config.num_scales - preset.unguided)
    return params.replace(steps=steps, guided_scales=guided)
