"""What `varsr selftest` takes."""

from __future__ import annotations

from varsr_engine.cli import shared
from varsr_engine.cli.app import command
from varsr_engine.cli.options import parse_device
from varsr_engine.commands.terminal import exit_codes


@command()
def selftest(
    device: shared.Device = None,
    dtype: shared.Dtype = None,
    as_json: shared.AsJson = False,
    verbose: shared.Verbose = False,
) -> None:
    """Hold this machine's kernels, and the whole engine, to the reference. The exit code is 1 if anything differs."""
    with exit_codes(verbose=verbose, as_json=as_json):
        from varsr_engine.commands.selftest import run_selftest

        run_selftest(parse_device(device) or "auto", dtype or "auto", as_json)
