"""`varsr train autoencoder|transformer`: from a config and images to weights."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

import varsr_engine
from varsr_engine.atomic import atomic_writer
from varsr_engine.commands.terminal import say
from varsr_engine.errors import InvalidParamsError
from varsr_engine.training.autoencoder import AutoencoderStage
from varsr_engine.training.config import TrainConfig
from varsr_engine.training.dataset import CropDataset, Crops, FolderImages, SyntheticImages
from varsr_engine.training.export import export_model, load_autoencoder, start_from
from varsr_engine.training.stage import Stage
from varsr_engine.training.trainer import Trainer, prepare_folder

STAGES = ("autoencoder", "transformer")
CONFIG_FILE, MODEL_FILE, IMAGES_FOLDER = "training.json", "model.safetensors", "images"


@dataclass(frozen=True, slots=True)
class TrainRun:
    """What to do, as typed."""

    stage: str
    config: str
    data: str
    out: Path
    autoencoder: Path | None
    init: Path | None
    resume: bool
    steps: int | None
    name: str
    licence: str
    tensorboard: bool
    quiet: bool


def run_train(run: TrainRun) -> None:
    """Train one stage into its folder; stage 2 ends with the whole model in one file that the engine loads."""
    if run.stage not in STAGES:
        raise InvalidParamsError(f"stage must be {' or '.join(STAGES)}, got {run.stage!r}")
    config = TrainConfig.load(run.config)
    trained = make_stage(run, config)
    if run.init is not None:
        start_from(trained, run.init)
    prepare_folder(run.out, resume=run.resume)
    dataset, workers = make_dataset(run, config), config.data.workers
    trainer = Trainer(trained, dataset, config.optimizer, run.out, workers, tensorboard=run.tensorboard)
    if trainer.rank == 0:
        with atomic_writer(run.out / CONFIG_FILE) as file:
            file.write((json.dumps(config.to_dict(), indent=2) + "\n").encode())
    if run.resume:
        trainer.resume()
    trainer.train(run.steps, quiet=run.quiet)
    if run.stage == "transformer" and trainer.rank == 0:
        metadata = {"name": run.name or run.out.name, "licence": run.licence, "commit": training_commit()}
        path = export_model(run.out, config.model, run.out / MODEL_FILE, metadata=metadata)
        if not run.quiet:
            say(f"the model is in {path}")


def make_stage(run: TrainRun, config: TrainConfig) -> Stage:
    torch.manual_seed(config.optimizer.seed)
    if run.stage == "autoencoder":
        return AutoencoderStage(config)
    if run.autoencoder is None:
        raise InvalidParamsError("training the transformer needs --autoencoder, the folder that stage 1 was trained in")
    from varsr_engine.training.transformer import TransformerStage

    return TransformerStage(config, load_autoencoder(run.autoencoder))


def make_dataset(run: TrainRun, config: TrainConfig) -> CropDataset:
    """Crops of a folder's images or of dead leaves, both kept in the run's folder as they are first used."""
    images, settings = run.out / IMAGES_FOLDER, config.data
    source: Crops
    if run.data == "synthetic":
        source = SyntheticImages(settings.pool_size, settings.pool_side, settings.pool_seed, images)
    else:
        source = FolderImages(run.data, images)
    paired = run.stage == "transformer"
    return CropDataset(
        source,
        config.model.image_side,
        config.optimizer.seed,
        poor_fraction=settings.poor_fraction if paired else 0.0,
        mild_fraction=settings.mild_fraction,
        paired=paired,
    )


def training_commit() -> str:
    """The commit of the checkout that this package runs from; "unknown" where it is not in one."""
    command = ["git", "-C", str(Path(varsr_engine.__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
