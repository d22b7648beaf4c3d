"""Which calls are timed: of an image's calls, recorded by the engine itself, three an op or all."""

from __future__ import annotations

from collections import defaultdict

import torch

from benchmarks.gpu_suite.calls import Call, record_image
from benchmarks.gpu_suite.settings import Settings
from varsr_engine.checkpoint import open_checkpoint
from varsr_engine.config import ModelConfig

NAMES = "varsr-mini, d24 (the published shapes), toy (the GPU suite's dry run), a folder or a file"


def config_of(model: str) -> ModelConfig:
    """The network of that name. Only its shapes are used."""
    if model == "d24":
        return ModelConfig.varsr_d24()
    return Settings.dry().config if model == "toy" else open_checkpoint(model).config


def image_calls(config: ModelConfig, batches: list[int], dtype: torch.dtype, every: bool) -> dict[str, Call]:
    """The calls by name, an op's together, ops in the order in which an image first needs them."""
    by_op: dict[str, list[Call]] = defaultdict(list)
    for batch in batches:
        recorded: dict[str, list[Call]] = defaultdict(list)
        for call in record_image(config, batch, dtype):
            recorded[call.op].append(call)
        for op, calls in recorded.items():
            by_op[op] += calls if every else representatives(calls)
    return {call.name: call for calls in by_op.values() for call in calls}


def representatives(calls: list[Call]) -> list[Call]:
    """The first, the middle and the last: of an op of the scale loop, at the smallest, a middle and the largest map."""
    return [calls[i] for i in sorted({0, len(calls) // 2, len(calls) - 1})]
