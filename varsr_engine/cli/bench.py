"""What `varsr bench` takes."""

from __future__ import annotations

from typing import Annotated

from varsr_engine.cli import shared
from varsr_engine.cli.app import command, option
from varsr_engine.commands.terminal import exit_codes


@command()
def bench(
    model: shared.Model = None,
    repeat: Annotated[int, option("--repeat", min=1, help="Measured runs.", show_default=True)] = 5,
    batch_size: shared.BatchSize = None,
    device: shared.Device = None,
    dtype: shared.Dtype = None,
    backend: shared.BackendName = None,
    quantization: shared.Quantization = None,
    numerics: shared.Numerics = None,
    as_json: shared.AsJson = False,
    verbose: shared.Verbose = False,
) -> None:
    """Time the engine on this machine, stage by stage."""
    with exit_codes(verbose=verbose, as_json=as_json):
        from varsr_engine.commands.bench import run_bench

        config = shared.engine_config(
            device=device,
            dtype=dtype,
            backend=backend,
            quantization=quantization,
            numerics=numerics,
            batch_size=batch_size,
        )
        run_bench(model, config, repeat, as_json)
