"""The command `varsr` itself, and the two helpers with which its commands are declared."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from varsr_engine import __version__
from varsr_engine.cli.options import AliasCommand

# The panels of a help page.
SIZE, GENERATION, FILES, MACHINE, MESSAGES = "Size", "Generation", "Files", "Machine", "Messages"
SERVER, CLUSTER, PAIRS, REPORTS = "Server", "Cluster", "Pairs", "Reports"

app = typer.Typer(
    name="varsr",
    help="Image super-resolution with VARSR, exact to the published model.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def option(*names: str, help: str, panel: str | None = None, **settings: Any) -> Any:
    """An option that shows its default only where asked to; most help texts say it in words."""
    settings.setdefault("show_default", False)
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


def command(**settings: Any) -> Any:
    """Decorator: the function is a command of `varsr`, and understands other tools' spellings."""
    return app.command(cls=AliasCommand, **settings)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"varsr {__version__}")
        raise typer.Exit


@app.callback()
def varsr(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="varsr")
