"""The reference model computes what the published implementation computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.golden_cases import load_case
from tests.numerics import relative_error
from tests.parity import assert_matches, case_id, generation_stages, golden_cases, training_stages
from varsr_engine.model.varsr import VARSR


@pytest.mark.parametrize("where", golden_cases(), ids=case_id)
def test_every_golden_tensor(where: tuple[Path, str]) -> None:
    case = load_case(*where)
    model = VARSR(case.config)
    model.load_state_dict(case.weights())
    images, trace = model.generate(case.lr, torch.tensor(case.labels), case.guidance_scale, case.noise)
    stages = generation_stages(case.config, case.guidance_scale, images, trace)
    if case.hr is not None:
        stages |= training_stages(model, case)
    assert_matches(case, stages, {})


def test_teacher_forcing_equals_the_cached_loop() -> None:
    """One block-causal pass over the tokens that the loop chose gives the logits that the loop saw."""
    case = load_case(*golden_cases()[-1])
    model = VARSR(case.config)
    model.load_state_dict(case.weights())
    labels = torch.tensor(case.labels)
    _, trace = model.generate(case.lr, labels, 0.0, case.noise)  # without guidance: the conditional logits
    net, quantize, config = model.transformer, model.vae.quantize, case.config
    with torch.no_grad():
        cond = net.class_emb(labels)
        parts = [net.first_input(None if case.lr is None else net.con_embedding(case.lr), cond)]
        f_hat = torch.zeros_like(trace.f_hats[0])
        for step in range(config.num_scales - 1):
            f_hat = f_hat + quantize.contribution(trace.tokens[step], step)
            parts.append(net.scale_input(quantize.next_map(f_hat, step), step + 1))
        x = net.run_blocks(torch.cat(parts, dim=1), cond, slice(None), model.block_causal())
        logits = net.logits(x[:, config.first_length - 1 :], cond)
    assert relative_error(logits, torch.cat(trace.logits, dim=1)) <= 1e-5


def test_teacher_forcing_is_differentiable_everywhere() -> None:
    case = load_case(*golden_cases()[-1])
    model = VARSR(case.config)
    model.load_state_dict(case.weights())
    assert case.hr is not None
    out = model.teacher_forced(case.lr, case.hr, torch.tensor(case.labels))
    noise_estimate = model.transformer.diffloss.net(
        torch.randn(out.refiner_z.flatten(0, 1).shape[0], case.config.latent_channels),
        torch.zeros(out.refiner_z.flatten(0, 1).shape[0], dtype=torch.int64),
        out.refiner_z.flatten(0, 1),
    )
    (out.logits.square().mean() + noise_estimate.square().mean()).backward()
    without = [n for n, p in model.transformer.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []
