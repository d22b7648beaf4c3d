"""What `varsr convert` takes."""

from __future__ import annotations

from typing import Annotated

import typer

from varsr_engine.cli import shared
from varsr_engine.cli.app import command, option
from varsr_engine.commands.terminal import exit_codes


@command(no_args_is_help=True)
def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The published folder, or any other model.")],
    destination: Annotated[str, typer.Argument(metavar="DEST", help="Folder for config.json and model.safetensors.")],
    dtype: Annotated[str, option("--dtype", metavar="TYPE", help="fp32, fp16 or bf16.", show_default=True)] = "fp32",
    fit_preview: Annotated[
        bool, option("--fit-preview", help="Fit the map of latent previews to the decoder, and keep it in the weights.")
    ] = False,
    overwrite: Annotated[bool, option("--overwrite", help="Replace a model that is there.")] = False,
    verbose: shared.Verbose = False,
) -> None:
    """Rewrite a model as config.json and model.safetensors. In fp32 nothing is lost."""
    with exit_codes(verbose=verbose):
        from varsr_engine.commands.convert import run_convert

        run_convert(source, destination, dtype, overwrite, fit_preview)
