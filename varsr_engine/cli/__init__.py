"""The command `varsr`, a file a command: what can be typed. What a command does is in `varsr_engine.commands`."""

# ruff: noqa: F401, I001
from __future__ import annotations

# A command is there once its file is imported; in this order they are listed.
from varsr_engine.cli import upscale, convert, info, selftest, bench, train, upscale_dataset, evaluate, serve, demo
from varsr_engine.cli.app import app, main
