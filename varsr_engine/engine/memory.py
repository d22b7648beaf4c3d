"""How much memory a batch takes, told before any of it is taken."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from varsr_engine.config import ModelConfig
from varsr_engine.engine.parts import PARTS
from varsr_engine.engine.quantization import Fp8Switches

# Parameters that the engine folds into tables, or never reads.
NOT_LOADED = re.compile(r"^transformer\..*ada_lin\.|^vae\.(encoder|quant_conv)\.")
RESERVE = 512 * 1024**2  # of a GPU: the context, the libraries' workspaces, and what the allocator cannot join


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of a model and of one batch, as the engine allocates them."""

    batch: int  # images, or tiles
    weights: int  # that are held all the time
    stages: dict[str, int]  # most bytes beside them: condition, scales, refiner, decoder
    kv_cache: int  # a part of the scales'

    @property
    def peak(self) -> int:
        """Weights and the largest stage: stages follow one another, and reuse each other's memory."""
        return self.weights + max(self.stages.values())


def weight_bytes(
    config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, fp8: Fp8Switches | None = None
) -> int:
    """Of the weights as the engine holds them; a few constants in float32 excepted, below 1 % of a published model.

    A layer that is FP8 at every step is held in FP8 alone, one that is at some steps in both forms.
    """
    loaded = sum(torch.Size(shape).numel() for name, shape in shapes.items() if not NOT_LOADED.search(name))
    tables = config.class_rows * (6 * config.depth + 2) * config.embed_dim + config.vocab_size * config.embed_dim
    total = loaded * dtype.itemsize + tables * 4
    if fp8 is not None and fp8.steps:
        quantized = len(fp8.layers) * (3 + 2 * config.mlp_ratio) * config.embed_dim**2  # qkv, fc1, fc2
        always = len(fp8.steps) == config.num_scales
        total += quantized * (1 - dtype.itemsize if always else 1)
    return total


def part_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> dict[str, int]:
    """Of the weights of each part that may rest, by its stage."""
    return {
        stage: sum(torch.Size(shape).numel() for name, shape in shapes.items() if name.startswith(prefixes))
        * dtype.itemsize
        for stage, prefixes in PARTS.items()
    }


def kv_cache_bytes(config: ModelConfig, batch: int, dtype: torch.dtype) -> int:
    """Keys and values of both guidance branches, all layers and all scales."""
    return config.depth * 2 * 2 * batch * sum(config.step_lengths) * config.embed_dim * dtype.itemsize


def memory_plan(
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    batch: int,
    dtype: torch.dtype,
    fp8: Fp8Switches | None = None,
    offload: bool = False,
) -> MemoryPlan:
    """Of a batch that runs as one, on a GPU. shapes: of the checkpoint's parameters.

    offload: whether the parts of the model are there only while their stage runs.

    A CPU takes less: it decodes image by image, gives layers of the cache back, and need not hold what it maps.
    """
    element, cache = dtype.itemsize, kv_cache_bytes(config, batch, dtype)
    stages = {
        "scales": cache + _scales(config, batch, element),
        "refiner": _refiner(config, batch, element),
        "decoder": batch * decoder_bytes(config, config.image_side**2, element),
    }
    if config.has_prefix:
        stages = {"condition": _condition(config, batch, element), **stages}
    weights = weight_bytes(config, shapes, dtype, fp8)
    if offload:
        parts = part_bytes(shapes, dtype)
        weights -= sum(parts.values())
        stages = {stage: size + parts.get(stage, 0) for stage, size in stages.items()}
    return MemoryPlan(batch, weights, stages, cache)


def _condition(config: ModelConfig, batch: int, element: int) -> int:
    """Input and output of the widest layer, and the image."""
    side, narrow = config.image_side, config.cond_channels[0]
    sizes = [2 * narrow * side**2]
    for wide in config.cond_channels[1:]:
        sizes += [2 * narrow * side**2, narrow * side**2 + wide * (side // 2) ** 2]
        side, narrow = side // 2, wide
    return batch * element * (max(sizes) + 3 * config.image_side**2)


def _scales(config: ModelConfig, batch: int, element: int) -> int:
    """Beside the cache: the blocks' buffers, the prefix, and a step's input, output and logits in float32."""
    C, rows = config.embed_dim, 2 * batch
    buffers = (3 + config.mlp_ratio) * rows * max(config.step_lengths) * C * element
    prefix = batch * config.latent_side**2 * C * 4 if config.has_prefix else 0
    modulation = rows * (6 * config.depth + 2) * C * 4
    following = [*(n * n for n in config.patch_nums[1:]), 0]
    steps = (
        4 * (rows * C * (length + after) + batch * side * side * config.vocab_size)
        for length, after, side in zip(config.step_lengths, following, config.patch_nums, strict=True)
    )
    return buffers + prefix + modulation + max(steps)


def _refiner(config: ModelConfig, batch: int, element: int) -> int:
    """A step's modulations, five maps of a block's width, tokens in float32 two and a half times, and the noise."""
    rows, W = 2 * batch * config.latent_side**2, config.refiner_width
    modulation = (3 * config.refiner_depth + 2) * W
    noise = batch * config.latent_side**2 * config.latent_channels * config.refiner_steps
    return rows * (element * (modulation + 5 * W) + 10 * config.embed_dim) + 4 * noise


def decoder_bytes(config: ModelConfig, pixels: int, element: int) -> int:
    """Of decoding `pixels` of output at once: four maps at the resolution that takes most, and the image."""
    widest = max(config.vae_channels * m / 4**level for level, m in enumerate(config.vae_multipliers))
    return int(pixels * (4 * widest + 3) * element)


def available_bytes(device: torch.device) -> int | None:
    """What an engine on this device could still allocate; None where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)  # what this process holds already, its weights included
    try:
        with open("/proc/meminfo") as lines:
            (line,) = (line for line in lines if line.startswith("MemAvailable:"))
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        return None


def largest_batch(
    config: ModelConfig,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    available: int,
    fp8: Fp8Switches | None = None,
    offload: bool = False,
) -> int:
    """The most images a batch that `available` bytes hold, weights and a reserve included; 0 where not one fits."""
    batch = 0
    while batch < 1024 and memory_plan(config, shapes, batch + 1, dtype, fp8, offload).peak + RESERVE <= available:
        batch += 1
    return batch
