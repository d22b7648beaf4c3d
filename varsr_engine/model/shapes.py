"""Names and shapes of every parameter of a checkpoint: those of the reference model, built without memory."""

from __future__ import annotations

from functools import lru_cache

import torch

from varsr_engine.config import ModelConfig
from varsr_engine.model.varsr import VARSR


@lru_cache(maxsize=8)
def _state_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = VARSR(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def state_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each parameter by name: `transformer.*` (with the refiner) and `vae.*` (with the encoder)."""
    return dict(_state_shapes(config))
