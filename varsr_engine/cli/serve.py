"""What `varsr serve` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from varsr_engine.cli import shared
from varsr_engine.cli.app import MACHINE, MESSAGES, SERVER, command, option
from varsr_engine.commands.terminal import exit_codes


@command(name="serve")
def serve_command(
    host: Annotated[str | None, option("--host", help="Where to listen. Default: 127.0.0.1.", panel=SERVER)] = None,
    port: Annotated[int | None, option("--port", help="0: any free one. Default: 8000.", panel=SERVER)] = None,
    api_key_file: Annotated[
        Path | None,
        option("--api-key-file", metavar="FILE", help="Keys, one a line; VARSR_API_KEY is one too.", panel=SERVER),
    ] = None,
    insecure: Annotated[bool, option("--insecure", help="Let other machines in without a key.", panel=SERVER)] = False,
    max_queued_tiles: Annotated[
        int | None, option("--max-queued-tiles", min=1, help="Beyond: 429. Default: 256.", panel=SERVER)
    ] = None,
    request_timeout: Annotated[
        float | None, option("--request-timeout", metavar="SECONDS", help="Default: 120.", panel=SERVER)
    ] = None,
    drain_timeout: Annotated[
        float | None,
        option("--drain-timeout", metavar="SECONDS", help="For what runs at SIGTERM. Default: 60.", panel=SERVER),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        option("--cors-origin", metavar="URL", help="Whose pages may call the server; repeatable.", panel=SERVER),
    ] = None,
    root_path: Annotated[
        str | None, option("--root-path", metavar="PATH", help="The prefix that a proxy strips.", panel=SERVER)
    ] = None,
    job_folder: Annotated[
        Path | None,
        option("--job-folder", metavar="FOLDER", help="For results of jobs. Default: the system's.", panel=SERVER),
    ] = None,
    server_config: Annotated[
        Path | None,
        option("--server-config", metavar="FILE", help="TOML with fields of ServerSettings.", panel=SERVER),
    ] = None,
    model: shared.Model = None,
    numerics: Annotated[
        str | None,
        option(
            "--numerics",
            metavar="KIND",
            help="fast, or batch_invariant: the same bits whatever shares a batch. Default: batch_invariant on a CPU, "
            "fast on a GPU.",
            panel=MACHINE,
        ),
    ] = None,
    device: shared.Device = None,
    dtype: shared.Dtype = None,
    backend: shared.BackendName = None,
    quantization: shared.Quantization = None,
    batch_size: shared.BatchSize = None,
    memory_budget: shared.MemoryBudget = None,
    config: shared.ConfigFile = None,
    quiet: Annotated[bool, option("-q", "--quiet", help="No line a request.", panel=MESSAGES)] = False,
    verbose: shared.Verbose = False,
) -> None:
    """Serve HTTP: /v1/upscale, OpenAI's /v1/images/edits, /v1/jobs, /healthz, /readyz, /metrics.

    Ends after SIGTERM or Ctrl-C once what is in flight is answered; again, at once.
    Needs the extra: pip install 'varsr-engine[server]'. See docs/serving.md.
    """
    with exit_codes(verbose=verbose):
        from varsr_engine.commands.serve import run_serve
        from varsr_engine.serving.settings import ServerSettings, read_api_keys

        settings = ServerSettings.resolve(
            server_config,
            host=host,
            port=port,
            api_keys=read_api_keys(api_key_file) or None,
            insecure=insecure or None,
            request_timeout=request_timeout,
            drain_timeout=drain_timeout,
            cors_origins=cors_origin or None,
            root_path=root_path,
            job_folder=None if job_folder is None else str(job_folder),
        )
        engine = shared.engine_config(
            config,
            device=device,
            dtype=dtype,
            backend=backend,
            quantization=quantization,
            numerics=numerics,
            batch_size=batch_size,
            memory_budget=memory_budget,
            max_queued_tiles=max_queued_tiles,
        )
        run_serve(model, engine, settings, invariant_on_cpu=numerics is None, quiet=quiet)
