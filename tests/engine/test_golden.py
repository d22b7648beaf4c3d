"""The engine computes what the published implementation computed, from a checkpoint folder on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.engine.conftest import Loaded
from tests.parity import assert_matches, case_id, generation_stages, golden_cases
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.generation import Generation
from varsr_engine.model.varsr import VARSR

Load = Callable[..., Loaded]


def run(loaded: Loaded, **options: object) -> Generation:
    case, engine = loaded
    options = {"guidance_scale": case.guidance_scale, "noise": case.noise, "top_k": 1, "trace": True, **options}
    if case.lr is None:
        return engine.class_to_image(case.labels, **options)  # type: ignore[arg-type]
    return engine.generate(case.lr, labels=case.labels, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", golden_cases(), ids=case_id)
def test_every_golden_tensor(where: tuple[Path, str], load_engine: Load) -> None:
    folder, name = where
    case, engine = load_engine(name, folder)
    out = run((case, engine))
    assert out.trace is not None
    stages = generation_stages(case.config, case.guidance_scale, out.images, out.trace)
    training = {n: t for n, t in case.tensors.items() if n.startswith(("encode.", "teacher."))}
    assert_matches(case, stages | training, {})  # the engine does not train: those are the reference's
    assert torch.equal(out.tokens, out.trace.tokens[-1])
    expected = [*([] if case.lr is None else ["condition"]), *(f"scale.{k}" for k in range(case.config.num_scales))]
    assert list(out.seconds) == [*expected, "refiner", "decoder"]


@pytest.mark.slow
def test_every_golden_tensor_through_triton(load_engine: Load) -> None:
    """The kernels of a GPU in float32, in Triton's interpreter where there is none: minutes."""
    case, engine = load_engine("tiny", backend="triton")
    out = run((case, engine))
    assert out.trace is not None
    stages = generation_stages(case.config, case.guidance_scale, out.images, out.trace)
    training = {n: t for n, t in case.tensors.items() if n.startswith(("encode.", "teacher."))}
    assert_matches(case, stages | training, {})


def test_an_engine_on_a_model_in_memory_is_the_same(load_engine: Load) -> None:
    case, engine = load_engine("tiny")
    model = VARSR(case.config)
    model.load_state_dict(case.weights())
    in_memory = Engine.from_model(model, device="cpu")
    assert torch.equal(run((case, in_memory)).images, run((case, engine)).images)


def test_fewer_steps_and_no_refiner_are_what_they_say(load_engine: Load) -> None:
    case, engine = load_engine("tiny")
    full = run((case, engine))
    assert full.trace is not None
    plain = run((case, engine), noise=None, refine=False)
    assert torch.equal(plain.latent, full.trace.f_hats[-1])
    same = run((case, engine), steps=case.config.refiner_steps)
    assert torch.equal(same.images, full.images)
    fewer = run((case, engine), noise=case.noise[: 4 + 1], steps=4)
    assert torch.equal(fewer.tokens, full.tokens) and not torch.equal(fewer.latent, full.latent)
