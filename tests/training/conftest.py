"""A miniature model and its data: every part of the architecture, a second of training."""

from __future__ import annotations

from typing import Any

import pytest

from varsr_engine.training.config import TrainConfig
from varsr_engine.training.dataset import CropDataset, SyntheticImages

MODEL: dict[str, Any] = {
    "depth": 2,
    "embed_dim": 32,
    "num_heads": 2,
    "patch_nums": [1, 2, 4, 8],
    "vocab_size": 64,
    "latent_channels": 8,
    "cond_channels": [8, 16, 16],
    "vae_channels": 8,
    "vae_multipliers": [1, 2, 2],
    "vae_res_blocks": 1,
    "vae_norm_groups": 4,
    "refiner_width": 32,
    "refiner_depth": 1,
}
OPTIMIZER: dict[str, Any] = {
    "steps": 30,
    "batch_size": 4,
    "learning_rate": 5e-3,
    "warmup_steps": 3,
    "ema_decay": 0.9,
    "autocast": "none",
    "log_every": 5,
    "save_every": 10,
    "preview_every": 30,
}


@pytest.fixture(scope="session")
def images() -> SyntheticImages:
    return SyntheticImages(pool_size=2, side=64, seed=3)


@pytest.fixture
def config() -> TrainConfig:
    return TrainConfig.from_dict(
        {
            "model": MODEL,
            "optimizer": OPTIMIZER,
            "transformer": {"self_fed": 0.5, "token_noise": 0.2, "local_heads": True},
        }
    )


@pytest.fixture
def crops(images: SyntheticImages, config: TrainConfig) -> CropDataset:
    return CropDataset(images, config.model.image_side, seed=5)
