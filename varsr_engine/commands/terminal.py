"""What every command shares: exit codes, messages on stderr, JSON on stdout."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

from varsr_engine.errors import InputError, KernelUnavailableError, ModelLoadError, VarsrError

if TYPE_CHECKING:
    from rich.console import Console

EXIT_FAILED, EXIT_USAGE, EXIT_MODEL, EXIT_INTERRUPTED = 1, 2, 78, 130


def exit_code(error: BaseException) -> int:
    """2: what was typed is wrong; 78: the model cannot be loaded; 130: Ctrl-C; 1: anything else."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, ModelLoadError):
        return EXIT_MODEL
    return EXIT_USAGE if isinstance(error, (InputError, KernelUnavailableError)) else EXIT_FAILED


def shown(path: str | os.PathLike[str]) -> str:
    """A path as it can be printed: names that are not Unicode are escaped."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def say(text: str) -> None:
    """One message on stderr."""
    typer.echo(text, err=True)


def print_json(value: Any) -> None:
    """The one object that --json prints on stdout."""
    typer.echo(json.dumps(value))


def error_entry(error: BaseException) -> dict[str, str]:
    """An error as JSON types: code and message."""
    if isinstance(error, VarsrError):
        return {"code": error.code, "message": error.message}
    if isinstance(error, KeyboardInterrupt):
        return {"code": "interrupted", "message": "interrupted"}
    return {"code": "internal", "message": f"{type(error).__name__}: {error}"}


def describe(error: BaseException, verbose: bool) -> str:
    """An error in one line; where it is not one of ours, with how to learn more."""
    message = error_entry(error)["message"]
    if isinstance(error, (VarsrError, KeyboardInterrupt)) or verbose:
        return message
    first_line = message.splitlines()[0] if message else type(error).__name__
    return f"unexpected {first_line} (run with -v for the traceback)"


def show_traceback(error: BaseException) -> None:
    say("".join(traceback.format_exception(error)).rstrip())


@contextlib.contextmanager
def exit_codes(*, verbose: bool = False, as_json: bool = False) -> Iterator[None]:
    """Turn errors into a message and an exit code; no traceback unless verbose."""
    try:
        yield
    except typer.Exit:
        raise
    except (Exception, KeyboardInterrupt) as error:
        if verbose and not isinstance(error, KeyboardInterrupt):
            show_traceback(error)
        say("interrupted" if isinstance(error, KeyboardInterrupt) else f"error: {describe(error, verbose)}")
        if as_json:
            print_json({"error": error_entry(error)})
        raise typer.Exit(exit_code(error)) from None


def is_interactive() -> bool:
    return sys.stderr.isatty()


def stdout_console() -> Console:
    """For tables: as wide as the terminal; elsewhere wide enough that nothing is cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


@contextlib.contextmanager
def byte_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for `on_progress(done, total)` in bytes; silent where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console, hidden = Console(stderr=True), not is_interactive()
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def human_bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
