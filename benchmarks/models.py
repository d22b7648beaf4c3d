"""The networks that are timed, by name: real weights, or random ones of the published shapes."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.gpu_suite.model import NOT_RUN, KeptCheckpoint, RandomCheckpoint
from tests.golden_cases import GOLDEN_FOLDER, load_case
from varsr_engine.checkpoint import Checkpoint, TensorCheckpoint, open_checkpoint
from varsr_engine.config import ModelConfig

NAMES = "varsr-mini, tiny (the golden network), d24 (random weights), a folder or a file"


def open_model(name: str, device: torch.device) -> tuple[Checkpoint, str]:
    """The checkpoint and its short name. d24's random weights are drawn once, on the device, and kept: 4.3 GB."""
    if name == "tiny":
        case = load_case(GOLDEN_FOLDER, "tiny")
        return TensorCheckpoint(case.weights(), case.config, "tiny"), "tiny"
    if name == "d24":
        drawn = RandomCheckpoint(ModelConfig.varsr_d24(), device)
        read = drawn.open()
        tensors = {key: read(key) for key in drawn.shapes if not key.startswith(NOT_RUN)}
        return KeptCheckpoint(tensors, drawn.config, "d24"), "d24"
    return open_checkpoint(name), Path(name).stem
