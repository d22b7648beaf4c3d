"""What `varsr eval` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from varsr_engine.cli import shared
from varsr_engine.cli.app import FILES, GENERATION, MESSAGES, PAIRS, REPORTS, SIZE, command, option
from varsr_engine.cli.options import params_of, parse_color_fix, parse_seed
from varsr_engine.commands.terminal import exit_codes


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
    overwrite: shared.Overwrite = False,
    scale: shared.Scale = None,
    tile: Annotated[
        str | None, option("--tile", metavar="auto|published|off", help="As for upscale. Default: auto.", panel=SIZE)
    ] = None,
    model: shared.Model = None,
    seed: Annotated[
        str | None, option("--seed", metavar="N", help="An integer, or random. Default: 0.", panel=GENERATION)
    ] = None,
    cfg: shared.Cfg = None,
    preset: shared.Preset = None,
    steps: shared.Steps = None,
    color_fix: shared.ColorFix = None,
    fidelity: shared.Fidelity = None,
    params: shared.ParamsFile = None,
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
    quiet: Annotated[bool, option("-q", "--quiet", help="Only tables and errors.", panel=MESSAGES)] = False,
) -> None:
    """Measure quality: PSNR, SSIM, MS-SSIM, NIQE, parity, seams; LPIPS and others where pyiqa is here with its weights.

    Nothing is downloaded; what cannot be measured is listed with the reason. Exit codes as for upscale.
    See docs/evaluation.md.
    """
    with exit_codes(verbose=verbose, as_json=as_json):
        from varsr_engine.commands.evaluate import EvaluationRun, run_evaluation

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
