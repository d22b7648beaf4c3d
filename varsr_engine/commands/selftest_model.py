"""The network of `varsr selftest`: small, with deterministic, untrained weights; its pictures mean nothing."""

from __future__ import annotations

import math
import zlib

import torch

from varsr_engine.checkpoint import TensorCheckpoint
from varsr_engine.config import ModelConfig
from varsr_engine.kernels.philox import philox_normal
from varsr_engine.model.shapes import state_shapes


def selftest_config() -> ModelConfig:
    """512 x 512 pixels like the published model, in 4 narrow layers: about a second on two CPU cores."""
    return ModelConfig(
        depth=4,
        embed_dim=128,
        num_heads=2,
        vocab_size=512,
        latent_channels=16,
        cond_channels=(16, 24, 32, 48, 64),
        vae_channels=16,
        vae_norm_groups=8,
        refiner_width=64,
        refiner_depth=2,
    )


def selftest_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Gaussian weights scaled by their fan-in, gains of 1, biases of 0: a pure function of name and shape."""
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    seed = torch.tensor([zlib.crc32(name.encode())])
    values = philox_normal(seed, torch.zeros(1, dtype=torch.int64), math.prod(shape), step=0, stream=0)
    return values.reshape(shape) / math.sqrt(math.prod(shape[1:]))


def selftest_checkpoint() -> TensorCheckpoint:
    config = selftest_config()
    tensors = {name: selftest_weight(name, shape) for name, shape in state_shapes(config).items()}
    return TensorCheckpoint(tensors, config, "selftest")
