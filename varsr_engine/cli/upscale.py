"""What `varsr upscale` takes."""

from __future__ import annotations

from typing import Annotated

import typer

from varsr_engine.cli import shared
from varsr_engine.cli.app import FILES, GENERATION, SIZE, command, option
from varsr_engine.cli.options import alias_help, parse_color_fix, parse_seed, parse_size
from varsr_engine.commands.terminal import exit_codes


@command(no_args_is_help=True, epilog=alias_help())
def upscale(
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT", help="Files, folders and patterns such as 'a/**/*.png'.")
    ] = None,
    more_inputs: Annotated[
        list[str] | None, option("-i", "--input", metavar="INPUT", help="The same; repeatable.", panel=FILES)
    ] = None,
    output: Annotated[
        str | None,
        option(
            "-o",
            "--output",
            metavar="OUT",
            help="A file, or a folder in which folders are mirrored. Default: beside each source.",
            panel=FILES,
        ),
    ] = None,
    ext: Annotated[
        str,
        option(
            "--ext",
            metavar="TYPE",
            help="auto (the source's; .png for transparency), png, jpg, webp or tif.",
            panel=FILES,
        ),
    ] = "auto",
    quality: shared.Quality = 95,
    suffix: Annotated[
        str | None,
        option(
            "--suffix",
            metavar="TEXT",
            help="Added to the names of outputs. Default: _x4 or the like beside the source; none in a folder.",
            panel=FILES,
        ),
    ] = None,
    recursive: Annotated[bool, option("-r", "--recursive", help="Go into subfolders.", panel=FILES)] = False,
    skip_existing: Annotated[
        bool, option("--skip-existing", help="Leave out what was written before.", panel=FILES)
    ] = False,
    overwrite: shared.Overwrite = False,
    compare: Annotated[
        bool,
        option("--compare", help="Also write *_compare.png: input, bicubic and result side by side.", panel=FILES),
    ] = False,
    dry_run: Annotated[bool, option("--dry-run", help="Only list what would be written.", panel=FILES)] = False,
    plan: Annotated[
        bool, option("--plan", help="Only tell tiles, seconds and memory, after timing one tile.", panel=FILES)
    ] = False,
    scale: shared.Scale = None,
    target_size: Annotated[
        str | None, option("--target-size", metavar="WxH", help="Size of the output in pixels.", panel=SIZE)
    ] = None,
    longest_side: shared.LongestSide = None,
    tile: Annotated[
        str,
        option(
            "--tile",
            metavar="auto|published|off",
            help="auto: outputs larger than the model's tile in overlapping tiles; published: decoded at once; "
            "off: resized to one and back.",
            panel=SIZE,
            show_default=True,
        ),
    ] = "auto",
    tile_overlap: Annotated[
        int | None,
        option("--tile-overlap", metavar="CELLS", help="Latent cells. Default: a quarter of a tile.", panel=SIZE),
    ] = None,
    model: shared.Model = None,
    seed: Annotated[
        str,
        option("--seed", metavar="N", help="An integer, or random.", panel=GENERATION, show_default=True),
    ] = "0",
    num_samples: Annotated[
        int,
        option("--num-samples", min=1, help="Results an image, seeds SEED, SEED+1, ...: *_seed<N>.", panel=GENERATION),
    ] = 1,
    cfg: shared.Cfg = None,
    label: Annotated[int, option("--label", help="Class: 0 is high quality.", panel=GENERATION)] = 0,
    preset: shared.Preset = None,
    guided_scales: Annotated[
        int | None,
        option(
            "--guided-scales",
            metavar="N",
            help="Guidance in the first N scales only: fewer than all are faster, not exact. Default: the preset's.",
            panel=GENERATION,
        ),
    ] = None,
    steps: shared.Steps = None,
    top_k: Annotated[
        int | None, option("--top-k", help="Default: the model's (1: the best token); 0: no limit.", panel=GENERATION)
    ] = None,
    top_p: Annotated[float | None, option("--top-p", help="Default: the model's.", panel=GENERATION)] = None,
    temperature: Annotated[float, option("--temperature", help="Of sampled tokens.", panel=GENERATION)] = 1.0,
    refiner_temperature: Annotated[
        float | None,
        option(
            "--refiner-temperature",
            help="Of the refiner's noise: 0 is smooth and the same for every seed. Default: the model's.",
            panel=GENERATION,
        ),
    ] = None,
    color_fix: shared.ColorFix = None,
    fidelity: shared.Fidelity = None,
    stop_at_scale: shared.StopAtScale = None,
    refiner: Annotated[
        bool, option("--refiner/--no-refiner", help="Without: faster, not exact.", panel=GENERATION)
    ] = True,
    alpha: Annotated[
        str, option("--alpha", metavar="keep|drop", help="Transparency.", panel=GENERATION, show_default=True)
    ] = "keep",
    device: shared.Device = None,
    dtype: shared.Dtype = None,
    backend: shared.BackendName = None,
    quantization: shared.Quantization = None,
    numerics: shared.Numerics = None,
    batch_size: shared.BatchSize = None,
    memory_budget: shared.MemoryBudget = None,
    config: shared.ConfigFile = None,
    as_json: shared.AsJson = False,
    verbose: shared.Verbose = False,
    quiet: shared.Quiet = False,
) -> None:
    """Upscale images.

    Every image is tried. Exit code: 1 if any failed, 2 if the command line is
    wrong, 78 if the model cannot be loaded, 130 after Ctrl-C.
    Inputs are never changed, and no output is ever half written.
    """
    with exit_codes(verbose=verbose, as_json=as_json):
        from varsr_engine.commands.upscale import UpscaleRun, run_upscale
        from varsr_engine.engine.params import UpscaleParams

        params = UpscaleParams.from_dict(
            {
                "scale": scale,
                "target_size": parse_size(target_size),
                "longest_side": longest_side,
                "seed": parse_seed(seed),
                "cfg": cfg,
                "label": label,
                "preset": preset or "quality",
                "steps": steps,
                "guided_scales": guided_scales,
                "top_k": top_k,
                "top_p": top_p,
                "temperature": temperature,
                "color_fix": parse_color_fix(color_fix),
                "refiner_temperature": refiner_temperature,
                "fidelity": fidelity,
                "stop_at_scale": stop_at_scale,
                "refiner": "on" if refiner else "off",
                "alpha": alpha,
                "tile": tile,
                "tile_overlap": tile_overlap,
            }
        )
        run = UpscaleRun(
            inputs=[*(inputs or []), *(more_inputs or [])],
            output=output,
            model=model,
            params=params,
            config=shared.engine_config(
                config,
                device=device,
                dtype=dtype,
                backend=backend,
                quantization=quantization,
                numerics=numerics,
                batch_size=batch_size,
                memory_budget=memory_budget,
            ),
            num_samples=num_samples,
            ext=ext,
            quality=quality,
            suffix=suffix,
            recursive=recursive,
            skip_existing=skip_existing,
            overwrite=overwrite,
            as_json=as_json,
            compare=compare,
            dry_run=dry_run,
            plan=plan,
            verbose=verbose,
            quiet=quiet,
        )
        run_upscale(run)
