"""`varsr convert`: any model as config.json and model.safetensors."""

from __future__ import annotations

from pathlib import Path

import torch

from varsr_engine.checkpoint import (
    AUTOENCODER_FILE,
    TRANSFORMER_FILES,
    WEIGHTS_FILE,
    Checkpoint,
    convert_checkpoint,
)
from varsr_engine.commands.terminal import byte_progress, human_bytes, say


def weight_bytes(source: Path) -> int:
    """Size of the weight files of a model's folder or file; 0 for what is not on this disk."""
    files = [source] if source.is_file() else [source / n for n in (WEIGHTS_FILE, *TRANSFORMER_FILES, AUTOENCODER_FILE)]
    return sum(file.stat().st_size for file in files if file.is_file())


def run_convert(source: str, destination: str, dtype: str, overwrite: bool, fit_preview: bool) -> None:
    """Convert, with a bar; prints where the model is and how big both files are."""
    fit = fitted_preview if fit_preview else None
    with byte_progress("converting") as on_progress:
        folder = convert_checkpoint(
            source, destination, dtype=dtype, overwrite=overwrite, fit_preview=fit, on_progress=on_progress
        )
    before, after = weight_bytes(Path(source)), weight_bytes(folder)
    was = f", was {human_bytes(before)}" if before else ""
    say(f"{folder}: {WEIGHTS_FILE} in {dtype}, {human_bytes(after)}{was}")


def fitted_preview(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The tensors of a preview map, fitted to the model's own decoder; says how well it fits."""
    from varsr_engine.engine.engine import Engine
    from varsr_engine.engine.params import EngineConfig
    from varsr_engine.engine.preview_fit import fit_preview_map

    fit = fit_preview_map(Engine(checkpoint, EngineConfig.resolve(cuda_graphs=False)))
    say(f"the map of latent previews explains {fit.r_squared:.1%} of the variance of decoded colours")
    return fit.map.tensors
