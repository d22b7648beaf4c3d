"""What `varsr info` takes."""

from __future__ import annotations

from typing import Annotated

import typer

from varsr_engine.cli import shared
from varsr_engine.cli.app import command, option
from varsr_engine.commands.terminal import exit_codes


@command()
def info(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="The model to describe. Default: as for upscale.")
    ] = None,
    memory: Annotated[
        bool, option("--memory", help="Only the memory that batches take on a GPU, and the largest that fits.")
    ] = False,
    dtype: Annotated[
        str | None, option("--dtype", metavar="TYPE", help="For --memory: fp32, fp16 or bf16. Default: fp16.")
    ] = None,
    as_json: shared.AsJson = False,
    verbose: shared.Verbose = False,
) -> None:
    """Show versions, devices, which kernels would run and why others would not, and what the model is and needs."""
    with exit_codes(verbose=verbose, as_json=as_json):
        if memory:
            from varsr_engine.commands.memory import run_memory

            return run_memory(model, dtype, as_json)
        from varsr_engine.commands.info import run_info

        run_info(model, as_json)
