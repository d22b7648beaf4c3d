"""The model that comes with the package, and which model is meant where none is named. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from varsr_engine.errors import ModelNotFoundError

DEFAULT_MODEL = "varsr-mini"
ASSETS = Path(__file__).parent / "assets"


def default_model(model: str | os.PathLike[str] | None = None) -> str:
    """`model`, else VARSR_MODEL in the environment, else the one that comes with the package."""
    return os.fspath(model) if model else os.environ.get("VARSR_MODEL") or DEFAULT_MODEL


def packaged_model(name: str) -> Path | None:
    """The file of the packaged model of that name; None for any other name, which is a path or a hub id.

    Raises ModelNotFoundError if this installation lacks it.
    """
    if name != DEFAULT_MODEL:
        return None
    path = ASSETS / f"{name}.safetensors"
    if not path.is_file():
        raise ModelNotFoundError(
            f"the model {name!r}, which comes with varsr_engine, is not in this installation: install it again, or "
            "give another with --model, model=... or VARSR_MODEL: a folder that holds the published VARSR.pth and "
            "VQVAE.pth, or config.json and model.safetensors ('varsr convert' makes the latter from the former)"
        )
    return path
