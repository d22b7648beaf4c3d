"""What `varsr train` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from varsr_engine.cli import shared
from varsr_engine.cli.app import MESSAGES, command, option
from varsr_engine.commands.terminal import exit_codes


@command(no_args_is_help=True)
def train(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="autoencoder, then transformer.")],
    config: Annotated[
        str, option("-c", "--config", metavar="FILE", help="TOML, or mini-autoencoder, mini-transformer.")
    ],
    out: Annotated[
        Path, option("-o", "--out", metavar="FOLDER", help="State, log, previews, and the model at the end.")
    ],
    data: Annotated[
        str, option("--data", metavar="FOLDER", help="Images to learn from, or synthetic.", show_default=True)
    ] = "synthetic",
    autoencoder: Annotated[
        Path | None, option("--autoencoder", metavar="FOLDER", help="Of stage 1, for the transformer.")
    ] = None,
    init: Annotated[Path | None, option("--init", metavar="FOLDER", help="Start from this run's weights.")] = None,
    resume: Annotated[bool, option("--resume", help="Go on with what the folder holds.")] = False,
    steps: Annotated[int | None, option("--steps", min=1, help="Stop there; the schedule stays the config's.")] = None,
    name: Annotated[str, option("--name", help="Of the model, in its file.")] = "",
    licence: Annotated[str, option("--licence", help="Of the weights, in their file.")] = "",
    tensorboard: Annotated[bool, option("--tensorboard", help="Curves too, in a subfolder.", panel=MESSAGES)] = False,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
) -> None:
    """Train a model of your own; on several GPUs or processes: torchrun ... -m varsr_engine train ..."""
    with exit_codes(verbose=verbose):
        from varsr_engine.commands.train import TrainRun, run_train

        run_train(
            TrainRun(stage, config, data, out, autoencoder, init, resume, steps, name, licence, tensorboard, quiet)
        )
