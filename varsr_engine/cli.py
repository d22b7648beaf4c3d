"""The command `varsr`: its options. What the commands do is in `varsr_engine.commands`, imported when one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from varsr_engine import __version__
from varsr_engine.commands.options import (
    AliasCommand,
    alias_help,
    params_of,
    parse_backend,
    parse_bytes,
    parse_color_fix,
    parse_device,
    parse_seed,
    parse_size,
)
from varsr_engine.commands.terminal import exit_codes

app = typer.Typer(
    name="varsr",
    help="Image super-resolution with VARSR, exact to the published model.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def option(*names: str, help: str, panel: str | None = None, **settings: Any) -> Any:
    settings.setdefault("show_default", False)
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


def command(**settings: Any) -> Any:
    return app.command(cls=AliasCommand, **settings)


SIZE, GENERATION, FILES, MACHINE, MESSAGES = "Size", "Generation", "Files", "Machine", "Messages"
SERVER, CLUSTER, PAIRS, REPORTS = "Server", "Cluster", "Pairs", "Reports"

Device = Annotated[
    str | None,
    option("-g", "--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or N. Default: auto.", panel=MACHINE),
]
Dtype = Annotated[
    str | None,
    option("--dtype", metavar="TYPE", help="auto, fp32, fp16 or bf16. Default: auto (fp16 on a GPU).", panel=MACHINE),
]
BackendName = Annotated[
    str | None,
    option("--backend", metavar="NAME", help="auto, cuda, triton, cpu or torch. Default: auto.", panel=MACHINE),
]
Quantization = Annotated[
    str | None,
    option(
        "--quantization",
        metavar="TYPE",
        help="none, or fp8: faster on GPUs from compute capability 8.9 on, not exact. Default: none.",
        panel=MACHINE,
    ),
]
Numerics = Annotated[
    str | None,
    option(
        "--numerics",
        metavar="KIND",
        help="fast, or batch_invariant: the same bits whatever shares a batch. Default: fast.",
        panel=MACHINE,
    ),
]
BatchSize = Annotated[
    int | None,
    option(
        "-b",
        "--batch-size",
        min=1,
        help="Images, or tiles of an image, a forward pass. Default: 1 image; tiles by the model's size.",
        panel=MACHINE,
    ),
]
MemoryBudget = Annotated[
    str | None,
    option(
        "--memory-budget",
        "--vram-budget",
        metavar="BYTES",
        help="What batches and the decoder keep to, such as 8G or 512M. Default: what gains.",
        panel=MACHINE,
    ),
]
AsJson = Annotated[bool, option("--json", help="Print one JSON object on stdout.", panel=MESSAGES)]
Verbose = Annotated[bool, option("-v", "--verbose", help="Seconds a stage, and tracebacks of errors.", panel=MESSAGES)]


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
    quality: Annotated[
        int, option("--quality", min=1, max=100, help="Of JPEG and WebP.", panel=FILES, show_default=True)
    ] = 95,
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
    overwrite: Annotated[bool, option("--overwrite", help="Replace files that exist.", panel=FILES)] = False,
    compare: Annotated[
        bool,
        option("--compare", help="Also write *_compare.png: input, bicubic and result side by side.", panel=FILES),
    ] = False,
    dry_run: Annotated[bool, option("--dry-run", help="Only list what would be written.", panel=FILES)] = False,
    plan: Annotated[
        bool, option("--plan", help="Only tell tiles, seconds and memory, after timing one tile.", panel=FILES)
    ] = False,
    scale: Annotated[
        float | None, option("-s", "--scale", help="Size of the output over the input's. Default: 4.", panel=SIZE)
    ] = None,
    target_size: Annotated[
        str | None, option("--target-size", metavar="WxH", help="Size of the output in pixels.", panel=SIZE)
    ] = None,
    longest_side: Annotated[
        int | None, option("--longest-side", help="Longest side of the output in pixels.", panel=SIZE)
    ] = None,
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
    model: Annotated[
        str | None,
        option(
            "-n",
            "--model",
            metavar="MODEL",
            help="A folder, a .safetensors file or a hub id. Default: VARSR_MODEL, else the packaged varsr-mini.",
            panel=GENERATION,
        ),
    ] = None,
    seed: Annotated[
        str,
        option("--seed", metavar="N", help="An integer, or random.", panel=GENERATION, show_default=True),
    ] = "0",
    num_samples: Annotated[
        int,
        option("--num-samples", min=1, help="Results an image, seeds SEED, SEED+1, ...: *_seed<N>.", panel=GENERATION),
    ] = 1,
    cfg: Annotated[
        float | None, option("--cfg", help="Strength of guidance. Default: the model's.", panel=GENERATION)
    ] = None,
    label: Annotated[int, option("--label", help="Class: 0 is high quality.", panel=GENERATION)] = 0,
    preset: Annotated[
        str,
        option(
            "--preset",
            metavar="quality|balanced|fast",
            help="quality is exact; the others are faster by fewer refiner steps and guided scales.",
            panel=GENERATION,
            show_default=True,
        ),
    ] = "quality",
    guided_scales: Annotated[
        int | None,
        option(
            "--guided-scales",
            metavar="N",
            help="Guidance in the first N scales only: fewer than all are faster, not exact. Default: the preset's.",
            panel=GENERATION,
        ),
    ] = None,
    steps: Annotated[
        int | None,
        option(
            "--steps",
            help="Of the refiner. Fewer than the model's (10): not exact. Default: the preset's.",
            panel=GENERATION,
        ),
    ] = None,
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
    color_fix: Annotated[
        str | None,
        option("--color-fix", metavar="KIND", help="adain, wavelet or none. Default: the model's.", panel=GENERATION),
    ] = None,
    fidelity: Annotated[
        float | None,
        option(
            "--fidelity",
            help="Share of the resized input in the output, 0 to 1; 0: none. Default: the model's.",
            panel=GENERATION,
        ),
    ] = None,
    stop_at_scale: Annotated[
        int | None,
        option(
            "--stop-at-scale",
            metavar="N",
            help="A draft of the first N scales, fast, without the refiner.",
            panel=GENERATION,
        ),
    ] = None,
    refiner: Annotated[
        bool, option("--refiner/--no-refiner", help="Without: faster, not exact.", panel=GENERATION)
    ] = True,
    alpha: Annotated[
        str, option("--alpha", metavar="keep|drop", help="Transparency.", panel=GENERATION, show_default=True)
    ] = "keep",
    device: Device = None,
    dtype: Dtype = None,
    backend: BackendName = None,
    quantization: Quantization = None,
    numerics: Numerics = None,
    batch_size: BatchSize = None,
    memory_budget: MemoryBudget = None,
    config: Annotated[
        Path | None, option("--config", metavar="FILE", help="TOML with fields of EngineConfig.", panel=MACHINE)
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Annotated[bool, option("-q", "--quiet", help="Only errors.", panel=MESSAGES)] = False,
) -> None:
    """Upscale images.

    Every image is tried. Exit code: 1 if any failed, 2 if the command line is
    wrong, 78 if the model cannot be loaded, 130 after Ctrl-C.
    Inputs are never changed, and no output is ever half written.
    """
    with exit_codes(verbose=verbose, as_json=as_json):
        from varsr_engine.commands.upscale import UpscaleRun, run_upscale
        from varsr_engine.engine.params import EngineConfig, UpscaleParams

        params = UpscaleParams.from_dict(
            {
                "scale": scale,
                "target_size": parse_size(target_size),
                "longest_side": longest_side,
                "seed": parse_seed(seed),
                "cfg": cfg,
                "label": label,
                "preset": preset,
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
            config=EngineConfig.resolve(
                config,
                device=parse_device(device),
                dtype=dtype,
                backend=parse_backend(backend),
                quantization=quantization,
                numerics=numerics,
                batch_size=batch_size,
                memory_budget=parse_bytes(memory_budget),
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


@command(no_args_is_help=True)
def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The published folder, or any other model.")],
    destination: Annotated[str, typer.Argument(metavar="DEST", help="Folder for config.json and model.safetensors.")],
    dtype: Annotated[str, option("--dtype", metavar="TYPE", help="fp32, fp16 or bf16.", show_default=True)] = "fp32",
    fit_preview: Annotated[
        bool, option("--fit-preview", help="Fit the map of latent previews to the decoder, and keep it in the weights.")
    ] = False,
    overwrite: Annotated[bool, option("--overwrite", help="Replace a model that is there.")] = False,
    verbose: Verbose = False,
) -> None:
    """Rewrite a model as config.json and model.safetensors. In fp32 nothing is lost."""
    with exit_codes(verbose=verbose):
        from varsr_engine.commands.convert import run_convert

        run_convert(source, destination, dtype, overwrite, fit_preview)


@command()
def info(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="The model to describe. Default: as for upscale.")
    ] = None,
    memory: Annotated[
        bool, option("--memory", help="Only the memory that batches take on a GPU, and the largest that fits.")
    ] = False,
    dtype: Annotated[
        str | None, option("--dtype", metavar="TYPE", help="For --memory: fp32, fp16 or bf16. Default: fp16.")
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show versions, devices, which kernels would run and why others would not, and what the model is and needs."""
    with exit_codes(verbose=verbose, as_json=as_json):
        if memory:
            from varsr_engine.commands.memory import run_memory

            return run_memory(model, dtype, as_json)
        from varsr_engine.commands.info import run_info

        run_info(model, as_json)


@command()
def selftest(device: Device = None, dtype: Dtype = None, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """Hold this machine's kernels, and the whole engine, to the reference. The exit code is 1 if anything differs."""
    with exit_codes(verbose=verbose, as_json=as_json):
        from varsr_engine.commands.selftest import run_selftest

        run_selftest(parse_device(device) or "auto", dtype or "auto", as_json)


@command()
def bench(
    model: Annotated[str | None, option("-n", "--model", metavar="MODEL", help="As for upscale.")] = None,
    repeat: Annotated[int, option("--repeat", min=1, help="Measured runs.", show_default=True)] = 5,
    batch_size: BatchSize = None,
    device: Device = None,
    dtype: Dtype = None,
    backend: BackendName = None,
    quantization: Quantization = None,
    numerics: Numerics = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Time the engine on this machine, stage by stage."""
    with exit_codes(verbose=verbose, as_json=as_json):
        from varsr_engine.commands.bench import run_bench
        from varsr_engine.engine.params import EngineConfig

        config = EngineConfig.resolve(
            device=parse_device(device),
            dtype=dtype,
            backend=parse_backend(backend),
            quantization=quantization,
            numerics=numerics,
            batch_size=batch_size,
        )
        run_bench(model, config, repeat, as_json)


@command(no_args_is_help=True)
def train(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="autoencoder, then transformer.")],
    config: Annotated[
        str, option("-c", "--config", metavar="FILE", help="TOML, or mini-autoencoder, mini-transformer.")
    ],
    out: Annotated[
        Path, option("-o", "--out", metavar="FOLDER", help="State, log, previews, and the model at the end.")
    ],
    data: Annotated[
        str, option("--data", metavar="FOLDER", help="Images to learn from, or synthetic.", show_default=True)
    ] = "synthetic",
    autoencoder: Annotated[
        Path | None, option("--autoencoder", metavar="FOLDER", help="Of stage 1, for the transformer.")
    ] = None,
    init: Annotated[Path | None, option("--init", metavar="FOLDER", help="Start from this run's weights.")] = None,
    resume: Annotated[bool, option("--resume", help="Go on with what the folder holds.")] = False,
    steps: Annotated[int | None, option("--steps", min=1, help="Stop there; the schedule stays the config's.")] = None,
    name: Annotated[str, option("--name", help="Of the model, in its file.")] = "",
    licence: Annotated[str, option("--licence", help="Of the weights, in their file.")] = "",
    tensorboard: Annotated[bool, option("--tensorboard", help="Curves too, in a subfolder.", panel=MESSAGES)] = False,
    quiet: Annotated[bool, option("-q", "--quiet", help="Only errors.", panel=MESSAGES)] = False,
    verbose: Verbose = False,
) -> None:
    """Train a model of your own; on several GPUs or processes: torchrun ... -m varsr_engine train ..."""
    with exit_codes(verbose=verbose):
        from varsr_engine.commands.train import TrainRun, run_train

        run_train(
            TrainRun(stage, config, data, out, autoencoder, init, resume, steps, name, licence, tensorboard, quiet)
        )


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
    quality: Annotated[
        int, option("--quality", min=1, max=100, help="Of JPEG and WebP.", panel=FILES, show_default=True)
    ] = 95,
    overwrite: Annotated[
        bool, option("--overwrite", help="Do all again. Default: only what has no output.", panel=FILES)
    ] = False,
    scale: Annotated[
        float | None, option("-s", "--scale", help="Size of the output over the input's. Default: 4.", panel=SIZE)
    ] = None,
    longest_side: Annotated[
        int | None, option("--longest-side", help="Longest side of the output in pixels.", panel=SIZE)
    ] = None,
    model: Annotated[
        str | None, option("-n", "--model", metavar="MODEL", help="As for upscale, on every machine.", panel=GENERATION)
    ] = None,
    seed: Annotated[
        int | None,
        option("--seed", help="Of the job; each image's own follows from its name. Default: 0.", panel=GENERATION),
    ] = None,
    preset: Annotated[
        str | None, option("--preset", metavar="quality|balanced|fast", help="Default: quality.", panel=GENERATION)
    ] = None,
    stop_at_scale: Annotated[
        int | None, option("--stop-at-scale", metavar="N", help="A draft of the first N scales.", panel=GENERATION)
    ] = None,
    params: Annotated[
        Path | None, option("--params", metavar="FILE", help="TOML with fields of UpscaleParams.", panel=GENERATION)
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    backend: BackendName = None,
    quantization: Quantization = None,
    numerics: Annotated[
        str | None,
        option(
            "--numerics",
            metavar="KIND",
            help="fast, or batch_invariant, which promises the same bits. Default: batch_invariant.",
            panel=MACHINE,
        ),
    ] = None,
    batch_size: BatchSize = None,
    memory_budget: MemoryBudget = None,
    config: Annotated[
        Path | None, option("--config", metavar="FILE", help="TOML with fields of EngineConfig.", panel=MACHINE)
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Annotated[bool, option("-q", "--quiet", help="Only errors.", panel=MESSAGES)] = False,
) -> None:
    """Upscale millions of images with Ray, on one machine or many.

    Results do not depend on how the work is divided. Started again, it does what has no output yet.
    Exit codes as for upscale. Needs the extra "ray". See docs/ray.md.
    """
    with exit_codes(verbose=verbose, as_json=as_json):
        from varsr_engine.commands.upscale_dataset import DatasetRun, run_upscale_dataset
        from varsr_engine.engine.params import EngineConfig
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
            EngineConfig.resolve(
                config,
                device=parse_device(device),
                dtype=dtype,
                backend=parse_backend(backend),
                quantization=quantization,
                numerics=numerics or "batch_invariant",
                batch_size=batch_size,
                memory_budget=parse_bytes(memory_budget),
            ),
            ext=ext,
            quality=quality,
            overwrite=overwrite,
        )
        run_upscale_dataset(DatasetRun(job, ray_address, workers, num_cpus, num_gpus, as_json, quiet))


@command(name="eval", no_args_is_help=True)
def eval_command(
    pairs: Annotated[
        Path | None,
        typer.Argument(metavar="PAIRS", help="lq/ and gt/ (LR, HR, test_LR, ...), folders of such, or pictures alone."),
    ] = None,
    outputs: Annotated[
        Path | None,
        option("--outputs", metavar="FOLDER", help="Score these results instead of running the engine.", panel=PAIRS),
    ] = None,
    reference: Annotated[
        Path | None,
        option("--reference", metavar="FOLDER", help="Another implementation's results: parity PSNR.", panel=PAIRS),
    ] = None,
    niqe_params: Annotated[
        Path | None,
        option("--niqe-params", metavar="FILE", help="What NIQE knows of good photographs, .npz.", panel=PAIRS),
    ] = None,
    synthetic: Annotated[
        int | None,
        option("--synthetic", metavar="N", min=1, help="Make N pairs instead of reading PAIRS.", panel=PAIRS),
    ] = None,
    make_pairs: Annotated[
        Path | None, option("--make-pairs", metavar="FOLDER", help="Keep the pairs of --synthetic there.", panel=PAIRS)
    ] = None,
    photographs: Annotated[
        Path | None,
        option("--photographs", metavar="FOLDER", help="Make them of crops of these images.", panel=PAIRS),
    ] = None,
    degradation: Annotated[
        str,
        option(
            "--degradation",
            metavar="KIND",
            help="second_order, mild, mild_fixed or hard_fixed.",
            panel=PAIRS,
            show_default=True,
        ),
    ] = "second_order",
    side: Annotated[
        int, option("--side", help="Of the truth of --synthetic, in pixels.", panel=PAIRS, show_default=True)
    ] = 256,
    save: Annotated[
        Path | None, option("--save", metavar="FOLDER", help="Keep the results, as PNG.", panel=FILES)
    ] = None,
    csv: Annotated[Path | None, option("--csv", metavar="FILE", help="A line a picture.", panel=REPORTS)] = None,
    html: Annotated[
        Path | None,
        option(
            "--html",
            metavar="FILE|FOLDER",
            help="A page with the pictures: in the .html file itself, or as PNG in a folder.",
            panel=REPORTS,
        ),
    ] = None,
    overwrite: Annotated[bool, option("--overwrite", help="Replace files that exist.", panel=FILES)] = False,
    scale: Annotated[
        float | None, option("-s", "--scale", help="Size of the output over the input's. Default: 4.", panel=SIZE)
    ] = None,
    tile: Annotated[
        str | None, option("--tile", metavar="auto|published|off", help="As for upscale. Default: auto.", panel=SIZE)
    ] = None,
    model: Annotated[
        str | None, option("-n", "--model", metavar="MODEL", help="As for upscale.", panel=GENERATION)
    ] = None,
    seed: Annotated[
        str | None, option("--seed", metavar="N", help="An integer, or random. Default: 0.", panel=GENERATION)
    ] = None,
    cfg: Annotated[
        float | None, option("--cfg", help="Strength of guidance. Default: the model's.", panel=GENERATION)
    ] = None,
    preset: Annotated[
        str | None, option("--preset", metavar="quality|balanced|fast", help="Default: quality.", panel=GENERATION)
    ] = None,
    steps: Annotated[
        int | None, option("--steps", help="Of the refiner. Default: the preset's.", panel=GENERATION)
    ] = None,
    color_fix: Annotated[
        str | None,
        option("--color-fix", metavar="KIND", help="adain, wavelet or none. Default: the model's.", panel=GENERATION),
    ] = None,
    fidelity: Annotated[
        float | None,
        option("--fidelity", help="Share of the resized input, 0 to 1. Default: the model's.", panel=GENERATION),
    ] = None,
    params: Annotated[
        Path | None,
        option("--params", metavar="FILE", help="TOML with any fields of UpscaleParams.", panel=GENERATION),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    backend: BackendName = None,
    quantization: Quantization = None,
    numerics: Numerics = None,
    batch_size: BatchSize = None,
    memory_budget: MemoryBudget = None,
    config: Annotated[
        Path | None, option("--config", metavar="FILE", help="TOML with fields of EngineConfig.", panel=MACHINE)
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Annotated[bool, option("-q", "--quiet", help="Only tables and errors.", panel=MESSAGES)] = False,
) -> None:
    """Measure quality: PSNR, SSIM, MS-SSIM, NIQE, parity, seams; LPIPS and others where pyiqa is here with its weights.

    Nothing is downloaded; what cannot be measured is listed with the reason. Exit codes as for upscale.
    See docs/evaluation.md.
    """
    with exit_codes(verbose=verbose, as_json=as_json):
        from varsr_engine.commands.evaluate import EvaluationRun, run_evaluation
        from varsr_engine.engine.params import EngineConfig

        chosen = params_of(
            params,
            scale=scale,
            tile=tile,
            seed=None if seed is None else parse_seed(seed),
            cfg=cfg,
            preset=preset,
            steps=steps,
            color_fix=parse_color_fix(color_fix),
            fidelity=fidelity,
        )
        run_evaluation(
            EvaluationRun(
                pairs=pairs,
                params=chosen if seed != "random" else chosen.replace(seed=None),
                config=EngineConfig.resolve(
                    config,
                    device=parse_device(device),
                    dtype=dtype,
                    backend=parse_backend(backend),
                    quantization=quantization,
                    numerics=numerics,
                    batch_size=batch_size,
                    memory_budget=parse_bytes(memory_budget),
                ),
                model=model,
                outputs=outputs,
                reference=reference,
                save=save,
                niqe_params=niqe_params,
                synthetic=synthetic,
                photographs=photographs,
                side=side,
                degradation=degradation,
                make_pairs=make_pairs,
                csv=csv,
                html=html,
                overwrite=overwrite,
                as_json=as_json,
                verbose=verbose,
                quiet=quiet,
            )
        )


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
    model: Annotated[str | None, option("-n", "--model", metavar="MODEL", help="As for upscale.")] = None,
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
    device: Device = None,
    dtype: Dtype = None,
    backend: BackendName = None,
    quantization: Quantization = None,
    batch_size: BatchSize = None,
    memory_budget: MemoryBudget = None,
    config: Annotated[
        Path | None, option("--config", metavar="FILE", help="TOML with fields of EngineConfig.", panel=MACHINE)
    ] = None,
    quiet: Annotated[bool, option("-q", "--quiet", help="No line a request.", panel=MESSAGES)] = False,
    verbose: Verbose = False,
) -> None:
    """Serve HTTP: /v1/upscale, OpenAI's /v1/images/edits, /v1/jobs, /healthz, /readyz, /metrics.

    Ends after SIGTERM or Ctrl-C once what is in flight is answered; again, at once.
    Needs the extra: pip install 'varsr-engine[server]'. See docs/serving.md.
    """
    with exit_codes(verbose=verbose):
        from varsr_engine.commands.serve import run_serve
        from varsr_engine.engine.params import EngineConfig
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
        engine = EngineConfig.resolve(
            config,
            device=parse_device(device),
            dtype=dtype,
            backend=parse_backend(backend),
            quantization=quantization,
            numerics=numerics,
            batch_size=batch_size,
            memory_budget=parse_bytes(memory_budget),
            max_queued_tiles=max_queued_tiles,
        )
        run_serve(model, engine, settings, invariant_on_cpu=numerics is None, quiet=quiet)


@command()
def demo(
    host: Annotated[
        str, option("--host", help="Where to listen. The page asks for no password.", panel=SERVER, show_default=True)
    ] = "127.0.0.1",
    port: Annotated[
        int, option("--port", min=0, max=65535, help="0: any free one.", panel=SERVER, show_default=True)
    ] = (7860),
    browser: Annotated[bool, option("--browser/--no-browser", help="Open the page here.", panel=SERVER)] = True,
    model: Annotated[str | None, option("-n", "--model", metavar="MODEL", help="As for upscale.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    backend: BackendName = None,
    quantization: Quantization = None,
    numerics: Numerics = None,
    batch_size: BatchSize = None,
    memory_budget: MemoryBudget = None,
    verbose: Verbose = False,
) -> None:
    """Serve a page that upscales images and shows them scale by scale (Gradio), on this machine alone.

    Needs the extra: pip install 'varsr-engine[gradio]'. See docs/integrations.md.
    """
    with exit_codes(verbose=verbose):
        from varsr_engine.commands.demo import run_demo
        from varsr_engine.engine.params import EngineConfig

        engine = EngineConfig.resolve(
            device=parse_device(device),
            dtype=dtype,
            backend=parse_backend(backend),
            quantization=quantization,
            numerics=numerics,
            batch_size=batch_size,
            memory_budget=parse_bytes(memory_budget),
        )
        run_demo(model, engine, host=host, port=port, browser=browser)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="varsr")
