"""The engine on this device against the golden numbers of the published implementation, in each dtype.

Two ways: free, where the engine's own tokens go forward, and fed, where the golden ones do, so that one flipped token
does not hide what comes after it (`benchmarks.forcing`): the rest is the engine as it is.
float32 must give every token; 16-bit logits may be twice as far off as those of the same engine on plain torch.
"""

from __future__ import annotations

import gc
import math
import os
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.forcing import forced_tokens
from benchmarks.gpu_suite.model import NOT_RUN, KeptCheckpoint, engine_config, load_engine
from benchmarks.gpu_suite.settings import Settings, torch_dtype
from benchmarks.gpu_suite.work import Clock, Item, NotRun, Result
from tests.golden_cases import GOLDEN_FOLDER, GoldenCase, load_case, parameter
from tests.numerics import relative_error
from tests.parity import golden_cases
from varsr_engine.checkpoint import Checkpoint
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.generation import Generation
from varsr_engine.errors import KernelUnavailableError
from varsr_engine.model.shapes import state_shapes

FLOAT32_LOGITS = 1e-4  # relative error of float32 logits: the tests' 1e-5, and another order of summation
GRAPH_PSNR = 40.0  # of a replayed graph's image against the same kernels launched one by one


def items(settings: Settings, clock: Clock) -> list[Item]:
    full = [Path(folder) for folder in golden_folders() if (Path(folder) / "full.json").exists()]
    cases = {"full": full[0]} if full else {}  # the longest: it starts first
    for folder, name in golden_cases():
        cases.setdefault(name, folder)
    if settings.dry_run:
        cases = {"tiny": GOLDEN_FOLDER}
    found = []
    for name, folder in cases.items():
        for dtype in settings.parity_dtypes:
            run = partial(measure, folder, name, dtype, settings)
            found.append(Item(f"{name} {dtype}", run, group=name if name == "full" else f"{name} {dtype}"))
        if settings.device == "cuda" and name in ("tiny", "small"):
            found.append(Item(f"{name} graph", partial(graph_against_launches, folder, name, settings)))
    return found


def golden_folders() -> list[str]:
    return [f for f in os.environ.get("VARSR_GOLDEN_DIRS", "").split(os.pathsep) if f]


@cache
def loaded(folder: Path, name: str, device: torch.device) -> tuple[GoldenCase, Checkpoint]:
    """A case, and its weights in float32 on the device: drawn once a process, tensor by tensor."""
    case = load_case(folder, name)
    tensors = {
        key: torch.from_numpy(parameter(case.seed, key.removeprefix("transformer."), shape)).to(device)
        for key, shape in state_shapes(case.config).items()
        if not key.startswith(NOT_RUN)
    }
    return case, KeptCheckpoint(tensors, case.config, name)


def generate(engine: Engine, case: GoldenCase) -> Generation:
    options: dict[str, Any] = {"guidance_scale": case.guidance_scale, "noise": case.noise, "top_k": 1, "trace": True}
    if case.lr is None:
        return engine.class_to_image(case.labels, **options)
    return engine.generate(case.lr, labels=case.labels, **options)


def measure(folder: Path, name: str, dtype: str, settings: Settings) -> Result:
    device = settings.torch_device
    case, checkpoint = loaded(folder, name, device)
    mine = both_ways(checkpoint, case, dtype, settings, "auto")
    if dtype in ("fp32", "fp8") or settings.dry_run:
        plain = None
    else:
        plain = both_ways(checkpoint, case, dtype, settings, "torch")
    problems = judge(mine, plain, dtype)
    about: Result = {"case": name, "dtype": dtype, **mine, "plain_torch": plain}
    return {**about, "status": "FAILED", "error": "; ".join(problems)} if problems else about


def both_ways(checkpoint: Checkpoint, case: GoldenCase, dtype: str, settings: Settings, backend: str) -> dict[str, Any]:
    device = settings.torch_device
    config = engine_config(device, dtype, backend=backend, cuda_graphs=False)
    engine = load_engine(checkpoint, config)
    golden = [case.tensors[f"tokens.{k}"].long().to(device) for k in range(case.config.num_scales)]
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # float32 means float32
            free = generate(engine, case)
            with forced_tokens(engine, golden) as own:
                fed = generate(engine, case)
    except KernelUnavailableError as error:
        if dtype != "fp8":
            raise
        raise NotRun(str(error)) from error
    finally:
        del engine
        gc.collect()
    assert free.trace is not None and fed.trace is not None
    return {
        "free": agreement(case, free, free.trace.tokens),
        "fed": agreement(case, fed, own, fed.trace.logits),
    }


def agreement(
    case: GoldenCase, out: Generation, tokens: list[torch.Tensor], logits: list[torch.Tensor] | None = None
) -> dict[str, Any]:
    """Shares of equal tokens, by scale and of all; PSNR of latent and image; relative errors of logits by scale."""
    golden, scales = case.tensors, range(case.config.num_scales)
    equal = [(tokens[k].cpu() == golden[f"tokens.{k}"]) for k in scales]
    about: dict[str, Any] = {
        "tokens_by_scale": [round(e.double().mean().item(), 5) for e in equal],
        "tokens": round(torch.cat([e.flatten() for e in equal]).double().mean().item(), 5),
        "latent_psnr": psnr(out.latent, golden["latent"]),
        "image_psnr": psnr(out.images, golden["image"], 1.0),
    }
    if logits is not None:
        about["logits_error"] = [logits_error(case, logits[k], k) for k in scales]
    return about


def logits_error(case: GoldenCase, logits: torch.Tensor, step: int) -> float:
    """Of a scale's guided logits; the full case holds the two largest of each token alone."""
    golden = case.tensors.get(f"logits.{step}")
    if golden is None:
        golden, logits = case.tensors[f"logits_top2.{step}"], logits.topk(2, dim=-1).values
    return relative_error(logits, golden.float())


def psnr(actual: torch.Tensor, golden: torch.Tensor, peak: float | None = None) -> float | None:
    """In dB, of the golden tensor's largest value where no peak is given; None where the two are equal."""
    actual, golden = actual.detach().cpu().double(), golden.double()
    error = (actual - golden).square().mean().item()
    peak = golden.abs().max().item() if peak is None else peak
    return None if error == 0 else round(10 * math.log10(peak**2 / error), 2)


def judge(mine: dict[str, Any], plain: dict[str, Any] | None, dtype: str) -> list[str]:
    """What is worse than it may be."""
    problems, errors = [], mine["fed"]["logits_error"]
    if dtype == "fp32":
        for way in ("free", "fed"):
            if mine[way]["tokens"] < 1:
                problems.append(f"float32 gives {mine[way]['tokens']:.2%} of the golden tokens ({way})")
        if max(errors) > FLOAT32_LOGITS:
            problems.append(f"float32 logits are {max(errors):.1e} from the golden ones")
    if plain is not None:
        eps = torch.finfo(torch_dtype(dtype)).eps
        for k, (error, allowed) in enumerate(zip(errors, plain["fed"]["logits_error"], strict=True)):
            if not error <= 2 * allowed + eps:
                problems.append(f"logits of scale {k}: {error:.1e}, plain torch {allowed:.1e}")
    return problems


def graph_against_launches(folder: Path, name: str, settings: Settings) -> Result:
    """A replayed graph gives what the same kernels give one by one, with other contents than it was captured with."""
    case, checkpoint = loaded(folder, name, settings.torch_device)
    engine = load_engine(checkpoint, engine_config(settings.torch_device, "fp16"))
    assert case.lr is not None
    lr = case.lr.to(settings.torch_device)
    engine.generate(-lr, seed=3, top_k=1)  # captures
    replayed = engine.generate(lr, seed=5, top_k=1)
    launched = engine.generate(lr, seed=5, top_k=1, trace=True)
    equal = (replayed.tokens == launched.tokens).double().mean().item()
    quality = psnr(replayed.images, launched.images.cpu(), 1.0)
    good = quality is None or quality >= GRAPH_PSNR
    about: Result = {"tokens": equal, "image_psnr": quality}
    return about if good else {**about, "status": "FAILED", "error": f"the two images: PSNR {quality} dB"}
