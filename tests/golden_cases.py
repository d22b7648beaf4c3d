"""Golden cases: deterministic weights and inputs, and the published implementation's outputs for them.

Every tensor is a pure function of (seed, name, shape): the raw 64-bit stream of Philox-4x64 keyed by
(seed, crc32(name)), mapped to a uniform of mean 0 and variance 1, then scaled by the parameter's kind. NumPy
guarantees that the raw stream never changes.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from varsr_engine.config import ModelConfig
from varsr_engine.model.shapes import state_shapes

GOLDEN_FOLDER = Path(__file__).parent / "golden"

_CHUNK = 1 << 15
_VAE_MULTIPLIERS = (1, 1, 2, 2, 4)
_NOT_IN_CONFIG = ("case", "kind", "seed", "batch", "labels", "vae_ch", "min_top1_gap")


def unit(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 array, uniform on [-sqrt(3), sqrt(3)): mean 0, variance 1."""
    stream = np.random.Philox(key=[seed, zlib.crc32(name.encode())])
    values = np.empty(math.prod(shape), np.float32)
    for start in range(0, values.size, _CHUNK):  # chunks that stay in the cache: the stream goes on between them
        chunk = values[start : start + _CHUNK]
        raw = stream.random_raw(chunk.size)
        raw >>= np.uint64(11)
        uniform = raw.astype(np.float64)
        uniform *= 2.0**-52  # 53 random bits in units of 2^-53, doubled: exact, as powers of two are
        uniform -= 1.0
        uniform *= math.sqrt(3.0)
        chunk[:] = uniform
    return values.reshape(shape)


def _mean_and_std(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if name.endswith("scale_mul_1H11"):
        return 2.0, 0.5
    if len(shape) == 1:  # gains of norms, biases
        return (1.0, 0.1) if name.endswith("weight") else (0.0, 0.02)
    if name.endswith("quantize.embedding.weight"):
        return 0.0, 0.6
    if name.endswith(("class_emb.weight", "lvl_embed.weight", "pos_start")):
        return 0.0, 0.5
    gain = 1.0
    if "ada_lin" in name or "adaLN" in name:
        gain = 0.4
    elif name.startswith("con_embedding"):
        gain = 1.5
    return 0.0, gain / math.sqrt(math.prod(shape[1:]))


def parameter(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 value of a parameter; the transformer's have their published name, the autoencoder's `vae.` before."""
    mean, std = _mean_and_std(name, shape)
    values = unit(seed, name, shape)
    values *= np.float32(std)
    values += np.float32(mean)
    return values


def iter_weights(config: ModelConfig, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """(name, value) of every parameter, one at a time; names begin with `transformer.` or `vae.`."""
    for name, shape in state_shapes(config).items():
        yield name, parameter(seed, name.removeprefix("transformer."), shape)


def weights(config: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    """All of `iter_weights` as tensors."""
    return {name: torch.from_numpy(value) for name, value in iter_weights(config, seed)}


@dataclass(frozen=True)
class GoldenCase:
    """A case's config, its inputs, and `tensors`: what the published implementation computed from them."""

    config: ModelConfig
    meta: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    lr: torch.Tensor | None  # [B, 3, 16p, 16p] in [-1, 1]; None for the class-to-image prior
    hr: torch.Tensor | None  # the same, the target of teacher forcing
    noise: torch.Tensor  # [refiner_steps + 1, B, p², Z]: the start, then one a step

    @property
    def seed(self) -> int:
        return self.meta["seed"]

    @property
    def batch(self) -> int:
        return self.meta["batch"]

    @property
    def labels(self) -> list[int]:
        return self.meta["labels"]

    @property
    def guidance_scale(self) -> float:
        return self.meta["guidance_scale"]

    def weights(self) -> dict[str, torch.Tensor]:
        """The case's parameters, generated anew on each call."""
        return weights(self.config, self.seed)


def case_config(meta: dict[str, Any]) -> ModelConfig:
    """ModelConfig of a case's json."""
    fields = {key: value for key, value in meta.items() if key not in _NOT_IN_CONFIG}
    if meta.get("kind") == "class_to_image":
        fields |= {"condition": "none", "cond_channels": ()}
    return ModelConfig.from_dict(fields | {"vae_channels": meta["vae_ch"], "vae_multipliers": _VAE_MULTIPLIERS})


def load_case(folder: str | Path, name: str) -> GoldenCase:
    """Read `<folder>/<name>.json` and `.safetensors` and generate the case's inputs."""
    meta = json.loads((Path(folder) / f"{name}.json").read_text())
    config, seed, B = case_config(meta), meta["seed"], meta["batch"]

    def image(key: str) -> torch.Tensor | None:
        if not config.has_prefix:
            return None
        return torch.from_numpy(unit(seed, key, (B, 3, config.image_side, config.image_side))).clamp_(-1, 1)

    rows, Z = config.latent_side**2, config.latent_channels
    noise = [unit(seed, f"noise.{i}", (B * rows, Z)).reshape(B, rows, Z) for i in range(config.refiner_steps + 1)]
    return GoldenCase(
        config=config,
        meta=meta,
        tensors=load_file(Path(folder) / f"{name}.safetensors"),
        lr=image("input.lr"),
        hr=image("input.hr"),
        noise=torch.from_numpy(np.stack(noise)),
    )
