"""The published configuration (24 layers, 1.1 B parameters) on golden weights: minutes, and 5 GB of disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.golden_cases import GoldenCase, load_case, parameter
from tests.parity import assert_matches, generation_stages
from varsr_engine.checkpoint import write_checkpoint
from varsr_engine.engine.engine import Engine
from varsr_engine.model.shapes import state_shapes

# Where the case's golden file lies, and where its generated weights are kept between runs.
FOLDERS = [Path(p) for p in os.environ.get("VARSR_GOLDEN_DIRS", "").split(os.pathsep) if p]
CACHE = Path(__file__).parent.parent / ".cache" / "golden"

pytestmark = pytest.mark.full


def full_case() -> tuple[Path, str]:
    for folder in FOLDERS:
        if (folder / "full.json").exists():
            return folder, "full"
    pytest.skip("VARSR_GOLDEN_DIRS names no folder with full.json and full.safetensors")


def model_folder(case: GoldenCase) -> Path:
    folder, shapes = CACHE / "full", state_shapes(case.config)
    if not (folder / "config.json").exists():
        write_checkpoint(
            folder,
            case.config,
            shapes,
            lambda name: torch.from_numpy(parameter(case.seed, name.removeprefix("transformer."), shapes[name])),
            overwrite=True,
        )
    return folder


def test_every_golden_tensor_of_the_published_configuration() -> None:
    case = load_case(*full_case())
    engine = Engine.from_pretrained(model_folder(case), device="cpu")
    out = engine.generate(
        case.lr, labels=case.labels, guidance_scale=case.guidance_scale, noise=case.noise, top_k=1, trace=True
    )
    assert out.trace is not None
    stages = generation_stages(case.config, case.guidance_scale, out.images, out.trace)
    # The golden image is stored in 16 bits: 1.7e-4 of its norm is that rounding. The refiner multiplies rounding
    # differences of its input by the guidance (7 and -6) ten times over.
    errors = assert_matches(case, stages, {"image": 2.5e-4, "latent": 1e-4, "refiner.residual": 2e-4})
    print({name: f"{error:.1e}" for name, error in errors.items()})
    print({stage: round(value, 2) for stage, value in out.seconds.items()})
