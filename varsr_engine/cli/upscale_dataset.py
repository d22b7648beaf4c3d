"""What `varsr upscale-dataset` takes."""

from __future__ import annotations

from typing import Annotated

import typer

from varsr_engine.cli import shared
from varsr_engine.cli.app import CLUSTER, FILES, GENERATION, MACHINE, command, option
from varsr_engine.cli.options import params_of
from varsr_engine.commands.terminal import exit_codes


@command(name="upscale-dataset", no_args_is_help=True)
def upscale_dataset(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder, with its subfolders, or s3://bucket/prefix.")],
    destination: Annotated[str, typer.Argument(metavar="DST", help="Where the same tree is written.")],
    ray_address: Annotated[
        str | None,
        option("--ray-address", metavar="ADDRESS", help="Of a cluster, or auto. Default: this machine.", panel=CLUSTER),
    ] = None,
    workers: Annotated[
        int | None,
        option("--workers", min=1, help="At most. Default: one a GPU, else one a processor.", panel=CLUSTER),
    ] = None,
    num_cpus: Annotated[
        float | None, option("--num-cpus", min=0.01, help="Of a worker, and its threads. Default: 1.", panel=CLUSTER)
    ] = None,
    num_gpus: Annotated[
        float | None, option("--num-gpus", min=0, help="Of a worker. Default: 1 where there are any.", panel=CLUSTER)
    ] = None,
    ext: Annotated[
        str, option("--ext", metavar="TYPE", help="auto (the source's), png, jpg, webp or tif.", panel=FILES)
    ] = "auto",
    quality: shared.Quality = 95,
    overwrite: Annotated[
        bool, option("--overwrite", help="Do all again. Default: only what has no output.", panel=FILES)
    ] = False,
    scale: shared.Scale = None,
    longest_side: shared.LongestSide = None,
    model: shared.Model = None,
    seed: Annotated[
        int | None,
        option("--seed", help="Of the job; each image's own follows from its name. Default: 0.", panel=GENERATION),
    ] = None,
    preset: shared.Preset = None,
    stop_at_scale: shared.StopAtScale = None,
    params: shared.ParamsFile = None,
    device: shared.Device = None,
    dtype: shared.Dtype = None,
    backend: shared.BackendName = None,
    quantization: shared.Quantization = None,
    numerics: Annotated[
        str | None,
        option(
            "--numerics",
            metavar="KIND",
            help="fast, or batch_invariant, which promises the same bits. Default: batch_invariant.",
            panel=MACHINE,
        ),
    ] = None,
    batch_size: shared.BatchSize = None,
    memory_budget: shared.MemoryBudget = None,
    config: shared.ConfigFile = None,
    as_json: shared.AsJson = False,
    verbose: shared.Verbose = False,
    quiet: shared.Quiet = False,
) -> None:
    """Upscale millions of images with Ray, on one machine or many.

    Results do not depend on how the work is divided. Started again, it does what has no output yet.
    Exit codes as for upscale. Needs the extra "ray". See docs/ray.md.
    """
    with exit_codes(verbose=verbose, as_json=as_json):
        from varsr_engine.commands.upscale_dataset import DatasetRun, run_upscale_dataset
        from varsr_engine.integrations.ray_data import DatasetJob
        from varsr_engine.packaged import default_model

        job = DatasetJob(
            source,
            destination,
            default_model(model),
            params_of(
                params,
                scale=scale,
                longest_side=longest_side,
                seed=seed,
                preset=preset,
                stop_at_scale=stop_at_scale,
            ),
            shared.engine_config(
                config,
                device=device,
                dtype=dtype,
                backend=backend,
                quantization=quantization,
                numerics=numerics or "batch_invariant",
                batch_size=batch_size,
                memory_budget=memory_budget,
            ),
            ext=ext,
            quality=quality,
            overwrite=overwrite,
        )
        run_upscale_dataset(DatasetRun(job, ray_address, workers, num_cpus, num_gpus, as_json, quiet))
