"""From a finished run to weights: of stage 1 for stage 2, of stage 2 for the engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from varsr_engine.checkpoint import TensorCheckpoint, save_model
from varsr_engine.config import ModelConfig
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.params import EngineConfig
from varsr_engine.engine.preview_fit import fit_preview_map
from varsr_engine.errors import CheckpointMismatchError, ModelNotFoundError
from varsr_engine.training.stage import Stage
from varsr_engine.training.trainer import STATE_FILE


def load_state(folder: Path, stage: str) -> dict[str, Any]:
    """The saved state of a run of that stage."""
    path = folder / STATE_FILE
    if not path.is_file():
        raise ModelNotFoundError(f"{str(folder)!r} holds no {STATE_FILE}: it is not the folder of a training run")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if state["stage"] != stage:
        raise CheckpointMismatchError(f"{str(path)!r}: is of {state['stage']}, expected {stage}")
    return state


def averaged_weights(state: Mapping[str, Any], prefix: str) -> dict[str, torch.Tensor]:
    """A run's weights under `prefix`, averaged where they were trained, by their names below it."""
    weights = {**state["weights"], **state["averaged"]}
    return {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}


def start_from(stage: Stage, folder: Path) -> None:
    """Give a stage the averaged weights of another run of the same stage and model, for training on from there."""
    weights = averaged_weights(load_state(folder, type(stage).__name__), "")
    try:
        stage.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointMismatchError(f"{str(folder)!r}: its weights do not fit this config: {error}") from None


def load_autoencoder(folder: Path) -> dict[str, torch.Tensor]:
    """The averaged weights of a run of stage 1, by their names in `Autoencoder`."""
    return averaged_weights(load_state(folder, "AutoencoderStage"), "vae.")


def export_model(
    folder: Path, config: ModelConfig, path: Path, *, metadata: Mapping[str, str], overwrite: bool = True
) -> Path:
    """Write the averaged weights of a run of stage 2 as one fp16 safetensors file, with encoder and preview map."""
    state = load_state(folder, "TransformerStage")
    about, weights = {"steps": str(state["step"]), **metadata}, averaged_weights(state, "model.")
    save_model(path, config, weights, encoder=True, metadata=about, overwrite=overwrite)  # whatever becomes of the fit
    engine = Engine(TensorCheckpoint(weights, config, path.name), EngineConfig(cuda_graphs=False))
    weights |= fit_preview_map(engine).map.tensors
    return save_model(path, config, weights, encoder=True, metadata=about, overwrite=True)
