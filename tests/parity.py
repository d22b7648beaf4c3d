"""Golden comparison: every tensor that a case holds, by name, against what an implementation computed."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from tests.golden_cases import GOLDEN_FOLDER, GoldenCase
from tests.numerics import relative_error
from varsr_engine.config import ModelConfig
from varsr_engine.model.varsr import VARSR, Trace

TOLERANCE = 1e-5
PREFIX_STRIDE = 64  # the full case holds every 64th prefix token


def golden_cases() -> list[tuple[Path, str]]:
    """(folder, name) of the cases in tests/golden and in the folders that VARSR_GOLDEN_DIRS lists; not the full one."""
    folders = [GOLDEN_FOLDER, *map(Path, filter(None, os.environ.get("VARSR_GOLDEN_DIRS", "").split(os.pathsep)))]
    return [(f, path.stem) for f in folders for path in sorted(f.glob("*.json")) if path.stem != "full"]


def case_id(case: object) -> str:
    return f"{case[0].name}-{case[1]}" if isinstance(case, tuple) else str(case)


def generation_stages(
    config: ModelConfig, guidance_scale: float, images: torch.Tensor, trace: Trace
) -> dict[str, torch.Tensor]:
    """The stages of a generation under their golden names."""
    assert trace.residual is not None and trace.latent is not None and trace.z is not None
    strength = torch.tensor(guidance_scale * config.guidance_ratio(config.num_scales - 1))
    stages = {
        "refiner.z": trace.z.flatten(0, 1),
        "refiner.residual": trace.residual.flatten(0, 1),
        "refiner.cfg": strength,
        "refiner.guidance": strength[None],
        "latent": trace.latent,
        "image": images,
    }
    if trace.prefix is not None:
        stages["prefix"] = trace.prefix
    for k in range(config.num_scales):
        stages[f"tokens.{k}"] = trace.tokens[k]
        stages[f"logits.{k}"] = trace.logits[k]
        stages[f"logits_top2.{k}"] = trace.logits[k].topk(2, dim=-1).values
        stages[f"f_hat.{k}"] = trace.f_hats[k]
    return stages


@torch.no_grad()
def training_stages(model: VARSR, case: GoldenCase) -> dict[str, torch.Tensor]:
    """The stages of encoding and teacher forcing under their golden names."""
    assert case.hr is not None
    quantize = model.vae.quantize
    tokens, inputs, residual = quantize.encode(model.vae.encode(case.hr))
    out = model.teacher_forced(case.lr, case.hr, torch.tensor(case.labels))
    return {
        **{f"encode.tokens.{k}": t for k, t in enumerate(tokens)},
        "encode.last_residual": residual,
        "teacher.input": inputs,
        "teacher.logits": out.logits,
        "teacher.refiner_z": out.refiner_z,
        "teacher.refiner_target": out.refiner_target,
    }


def assert_matches(case: GoldenCase, stages: dict[str, torch.Tensor], tolerances: dict[str, float]) -> dict[str, float]:
    """Compare all golden tensors: integers exactly, others by relative error. Returns the errors."""
    missing = set(case.tensors) - set(stages)
    assert not missing, f"golden tensors that nothing was compared with: {sorted(missing)}"
    errors = {}
    for name, golden in case.tensors.items():
        actual = stages[name]
        if name == "prefix" and actual.shape != golden.shape:
            actual = actual[:, ::PREFIX_STRIDE]
        if not golden.is_floating_point():
            wrong = int((actual != golden).sum())
            assert wrong == 0, f"{name}: {wrong} of {golden.numel()} tokens differ"
            continue
        errors[name] = relative_error(actual, golden.float())
    failed = {n: e for n, e in errors.items() if e > tolerances.get(n, TOLERANCE)}
    assert not failed, f"relative errors above the tolerance: {failed}"
    return errors
