"""The baseline computes what the published implementation computed: golden parity, stage by stage."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.published_style import PublishedOutput, PublishedStyle, sample
from tests.golden_cases import GOLDEN_FOLDER, GoldenCase, load_case, unit, weights
from varsr_engine.config import ModelConfig
from varsr_engine.model.shapes import state_shapes

TOLERANCE = 1e-5


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def run(case: GoldenCase, **options: Any) -> tuple[PublishedStyle, PublishedOutput]:
    model = PublishedStyle(case.weights(), case.config)
    return model, model.generate(case.lr, case.labels, case.guidance_scale, noise=case.noise, **options)


@pytest.mark.parametrize("name", ["tiny", "small", "c2i"])
def test_golden_parity(name: str) -> None:
    case, stages = load_case(GOLDEN_FOLDER, name), []
    _, out = run(case, keep_logits=True, timer=stages.append)
    golden, scales = case.tensors, range(case.config.num_scales)

    assert stages == ["condition", *(f"scale.{k}" for k in scales), "refiner", "decoder"]
    assert all(torch.equal(out.tokens[k], golden[f"tokens.{k}"].long()) for k in scales)
    pairs = {"image": out.image, "latent": out.latent, "refiner.residual": out.residual, "refiner.z": out.z}
    pairs |= {f"f_hat.{k}": out.f_hats[k] for k in scales} | {f"logits.{k}": out.logits[k] for k in scales}
    if case.config.has_prefix:
        pairs["prefix"] = out.prefix
    errors = {key: relative_error(value, golden[key]) for key, value in pairs.items()}
    assert max(errors.values()) <= TOLERANCE, errors


def test_second_call_and_seeded_noise() -> None:
    case = load_case(GOLDEN_FOLDER, "tiny")
    model, first = run(case)
    call = (case.lr, case.labels, case.guidance_scale)
    assert torch.equal(model.generate(*call, noise=case.noise).image, first.image)  # no cache left behind
    seeded = [model.generate(*call, seed=seed, top_k=20).image for seed in (5, 5, 6)]
    assert torch.equal(seeded[0], seeded[1]) and not torch.equal(seeded[0], seeded[2])


def test_weights_are_shared_and_named_as_published() -> None:
    case = load_case(GOLDEN_FOLDER, "tiny")
    tensors = case.weights()
    model = PublishedStyle(tensors, case.config)
    assert model.transformer.head.weight.data_ptr() == tensors["transformer.head.weight"].data_ptr()
    assert not tensors["transformer.head.weight"].requires_grad
    shapes = {f"transformer.{n}": tuple(p.shape) for n, p in model.transformer.named_parameters()}
    shapes |= {f"vae.{n}": tuple(p.shape) for n, p in model.autoencoder.named_parameters()}
    unused = ("vae.encoder.", "vae.quant_conv.")
    assert shapes == {n: s for n, s in state_shapes(case.config).items() if not n.startswith(unused)}


def test_autocast_casts_a_weight_once_a_call() -> None:
    """As the published code does: a baseline that cast its weights at every step would be slowed down."""
    config = replace(load_case(GOLDEN_FOLDER, "tiny").config, patch_nums=(1, 2, 3))  # fp16 is slow on a CPU
    tensors, lr, casts = weights(config, 0), torch.from_numpy(unit(0, "input.lr", (1, 3, 48, 48))), Counter()
    model = PublishedStyle(tensors, config, autocast=True)

    class CountCasts(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default:
                casts[args[0].data_ptr()] += 1
            return func(*args, **(kwargs or {}))

    with CountCasts():
        out = model.generate(lr, [0], 2.0)
    expected = PublishedStyle(tensors, config).generate(lr, [0], 2.0)
    assert relative_error(out.prefix, expected.prefix) < 0.01
    counted = [casts[block.ffn.fc1.weight.data_ptr()] for block in model.transformer.blocks]
    assert counted == [1] * config.depth


def test_sample_keeps_the_smallest_set_above_top_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(1, 2000, 4)
    generator = torch.Generator().manual_seed(0)

    def drawn(top_k: int, top_p: float) -> set[int]:
        return set(sample(logits.clone(), top_k, top_p, generator).unique().tolist())

    assert drawn(0, 1.0) == {0, 1, 2, 3}
    assert drawn(3, 1.0) == {0, 1, 2}
    assert drawn(0, 0.75) == {0, 1}
    assert drawn(0, 0.9) == {0, 1, 2}
    assert drawn(1, 0.75) == {0}


@pytest.mark.parametrize("preset", ["varsr_d24", "c2i_d24"])
def test_shapes_tell_their_config(preset: str) -> None:
    config = getattr(ModelConfig, preset)()
    assert ModelConfig.from_shapes(state_shapes(config)) == config


def test_published_parameter_counts() -> None:
    shapes = state_shapes(ModelConfig.varsr_d24())

    def millions(prefix: str) -> float:
        return round(sum(math.prod(s) for n, s in shapes.items() if n.startswith(prefix)) / 1e6, 1)

    assert millions("transformer.") == 1101.9
    assert millions("vae.") == 108.9
    assert millions("vae.decoder.") == 64.7
    assert millions("transformer.con_embedding.") == 32.9
    assert millions("transformer.diffloss.") == 36.6
    assert len(shapes) == 702


def test_attention_only_at_the_lowest_resolution() -> None:
    shapes = state_shapes(ModelConfig(vae_multipliers=(1, 2, 4), cond_channels=(32, 64, 64), vae_res_blocks=1))
    attention = sorted(n for n in shapes if n.endswith("qkv.weight") and n.startswith("vae."))
    assert attention == [
        "vae.decoder.mid.attn_1.qkv.weight",
        "vae.decoder.up.2.attn.0.qkv.weight",
        "vae.decoder.up.2.attn.1.qkv.weight",
        "vae.encoder.down.2.attn.0.qkv.weight",
        "vae.encoder.mid.attn_1.qkv.weight",
    ]
    shortcuts = sorted(n for n in shapes if n.endswith("decoder.up.0.block.0.nin_shortcut.weight"))
    assert [shapes[n] for n in shortcuts] == [(160, 320, 1, 1)]
