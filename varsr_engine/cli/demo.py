"""What `varsr demo` takes."""

from __future__ import annotations

from typing import Annotated

from varsr_engine.cli import shared
from varsr_engine.cli.app import SERVER, command, option
from varsr_engine.commands.terminal import exit_codes


@command()
def demo(
    host: Annotated[
        str, option("--host", help="Where to listen. The page asks for no password.", panel=SERVER, show_default=True)
    ] = "127.0.0.1",
    port: Annotated[
        int, option("--port", min=0, max=65535, help="0: any free one.", panel=SERVER, show_default=True)
    ] = (7860),
    browser: Annotated[bool, option("--browser/--no-browser", help="Open the page here.", panel=SERVER)] = True,
    model: shared.Model = None,
    device: shared.Device = None,
    dtype: shared.Dtype = None,
    backend: shared.BackendName = None,
    quantization: shared.Quantization = None,
    numerics: shared.Numerics = None,
    batch_size: shared.BatchSize = None,
    memory_budget: shared.MemoryBudget = None,
    verbose: shared.Verbose = False,
) -> None:
    """Serve a page that upscales images and shows them scale by scale (Gradio), on this machine alone.

    Needs the extra: pip install 'varsr-engine[gradio]'. See docs/integrations.md.
    """
    with exit_codes(verbose=verbose):
        from varsr_engine.commands.demo import run_demo

        engine = shared.engine_config(
            device=device,
            dtype=dtype,
            backend=backend,
            quantization=quantization,
            numerics=numerics,
            batch_size=batch_size,
            memory_budget=memory_budget,
        )
        run_demo(model, engine, host=host, port=port, browser=browser)
