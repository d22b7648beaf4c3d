"""ModelConfig: what it refuses, what the presets imply, and its way through JSON and tensor shapes."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from tests.kernels.harness import raises
from varsr_engine.config import C2I_SCALES, VARSR_SCALES, ModelConfig, reject_unknown_keys
from varsr_engine.errors import CheckpointMismatchError, InvalidParamsError
from varsr_engine.model.shapes import state_shapes

VARSR, C2I = ModelConfig.varsr_d24(), ModelConfig.c2i_d24()
TINY = ModelConfig(
    depth=2,
    embed_dim=32,
    num_heads=2,
    patch_nums=(1, 2, 4),
    vocab_size=64,
    latent_channels=8,
    cond_channels=(8, 16, 16),
    vae_channels=32,
    vae_multipliers=(1, 2, 2),
    refiner_width=16,
    refiner_depth=3,
    guidance_scale=2.5,
)
presets = pytest.mark.parametrize("config", [VARSR, C2I, TINY], ids=["varsr", "c2i", "tiny"])


# --- presets, by section 1 of the specification ----------------------------------------------------------------------


def test_published_super_resolution_model() -> None:
    assert dataclasses.replace(ModelConfig(), guidance_scale_tiled=7.0) == VARSR
    assert VARSR.patch_nums == VARSR_SCALES == (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
    assert (VARSR.depth, VARSR.embed_dim, VARSR.num_heads, VARSR.head_dim) == (24, 1536, 24, 64)
    assert (VARSR.vocab_size, VARSR.latent_channels, VARSR.num_scales, VARSR.latent_side) == (4096, 32, 10, 32)
    assert (VARSR.downsample, VARSR.image_side) == (16, 512)
    assert VARSR.has_prefix and VARSR.first_length == 1025
    assert VARSR.step_lengths == (1025, 4, 9, 16, 36, 81, 169, 324, 576, 1024)
    assert sum(VARSR.step_lengths) == 3264
    assert (VARSR.num_classes, VARSR.class_rows, VARSR.uncond_label) == (2, 2, 1)
    assert (VARSR.guidance_scale, VARSR.guidance_scale_tiled, VARSR.top_k, VARSR.top_p) == (6.0, 7.0, 1, 0.75)
    assert VARSR.refiner_temperature == 1.0
    assert (VARSR.refiner_width, VARSR.refiner_depth, VARSR.refiner_steps, VARSR.refiner_train_steps) == (
        1024,
        6,
        10,
        1000,
    )
    assert [VARSR.guidance_ratio(k) for k in range(10)] == [k / 9 for k in range(10)]


def test_published_class_to_image_prior() -> None:
    assert C2I.patch_nums == C2I_SCALES == (1, 2, 3, 4, 6, 9, 12, 16, 20, 24, 28, 32)
    assert not C2I.has_prefix and C2I.first_length == 1 and C2I.cond_channels == ()
    assert C2I.step_lengths == tuple(p * p for p in C2I_SCALES)
    assert (C2I.num_classes, C2I.class_rows, C2I.uncond_label) == (3830, 3831, 3830)
    assert (C2I.guidance_scale, C2I.top_k, C2I.top_p) == (4.0, 20, 0.75)
    assert (C2I.depth, C2I.embed_dim, C2I.num_heads, C2I.image_side) == (24, 1536, 24, 512)
    assert [C2I.guidance_ratio(k) for k in range(12)] == [(k + 1) / 11 for k in range(12)]
    assert C2I.guidance_ratio(11) == 12 / 11  # K / (K - 1), what the refiner gets


def test_phi_index_of_the_published_scales() -> None:
    """Steps 2 and 7 are ties but for float64's rounding."""
    assert [VARSR.phi_index(k) for k in range(9)] == [0, 0, 1, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("num_phi", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("scales", [VARSR_SCALES, C2I_SCALES, (1, 2, 3)])
def test_phi_index_is_that_of_numpy(num_phi: int, scales: tuple[int, ...]) -> None:
    """argmin |ticks - k/(K-1)| on NumPy's linspace, with which the weights were trained."""
    config = dataclasses.replace(VARSR, patch_nums=scales, num_phi=num_phi)
    ticks = np.linspace(1 / 3 / num_phi, 1 - 1 / 3 / num_phi, num_phi)
    last = len(scales) - 1
    assert [config.phi_index(k) for k in range(last)] == [int(np.argmin(np.abs(ticks - k / last))) for k in range(last)]


# --- round trips -----------------------------------------------------------------------------------------------------


@presets
def test_json_round_trip(config: ModelConfig) -> None:
    text = config.to_json()
    assert text.endswith("}\n") and json.loads(text)["model_type"] == "varsr"
    assert ModelConfig.from_dict(json.loads(text)) == config
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert all(not isinstance(v, tuple) for v in config.to_dict().values())


@pytest.mark.parametrize("config", [VARSR, C2I], ids=["varsr", "c2i"])
def test_from_shapes(config: ModelConfig) -> None:
    assert ModelConfig.from_shapes(state_shapes(config)) == config


def test_from_shapes_with_known_values() -> None:
    """What shapes do not tell has to be given, and what is given wins."""
    shapes = state_shapes(TINY)
    assert ModelConfig.from_shapes(shapes, patch_nums=(1, 2, 4), guidance_scale=2.5) == TINY
    with pytest.raises(CheckpointMismatchError, match="3 scales and 17 first tokens match no published model"):
        ModelConfig.from_shapes(shapes)
    shapes.pop("transformer.pos_start")
    with raises(
        CheckpointMismatchError,
        "checkpoint: tensor 'transformer.pos_start' is missing, so the model's shape is unknown",
    ):
        ModelConfig.from_shapes(shapes, patch_nums=(1, 2, 4))


def test_is_a_hashable_immutable_value() -> None:
    assert hash(ModelConfig.varsr_d24()) == hash(VARSR) and VARSR != C2I
    assert ModelConfig(patch_nums=[1, 2, 3]).patch_nums == (1, 2, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        VARSR.depth = 2


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth must be a positive integer, got 0"),
        ({"depth": 2.0}, "depth must be a positive integer, got 2.0"),
        ({"vocab_size": "4096"}, "vocab_size must be a positive integer, got '4096'"),
        ({"num_phi": True}, "num_phi must be a positive integer, got True"),
        ({"top_k": -1}, "top_k must be 0 (off) or a positive integer, got -1"),
        ({"top_p": 0.0}, "top_p must be in (0, 1], got 0.0"),
        ({"top_p": 1.5}, "top_p must be in (0, 1], got 1.5"),
        ({"top_p": math.nan}, "top_p must be in (0, 1], got nan"),
        ({"guidance_scale_tiled": -1.0}, "guidance_scale_tiled must be a number >= 0 or None, got -1.0"),
        ({"refiner_temperature": None}, "refiner_temperature must be a number >= 0, got None"),
        ({"fidelity": 1.5}, "fidelity must be in [0, 1], got 1.5"),
        ({"color_fix": "lab"}, "color_fix must be one of ('adain', 'wavelet', 'none'), got 'lab'"),
        ({"num_heads": 7}, "num_heads must be a divisor of embed_dim = 1536, got 7"),
        (
            {"embed_dim": 12, "num_heads": 2},
            "num_heads must be such that embed_dim / num_heads is a multiple of 4 (2-D RoPE), got 2",
        ),
        ({"patch_nums": (1,)}, "patch_nums must be at least two increasing sides that start with 1, got (1,)"),
        ({"patch_nums": (2, 3)}, "patch_nums must be at least two increasing sides that start with 1, got (2, 3)"),
        (
            {"patch_nums": (1, 3, 3)},
            "patch_nums must be at least two increasing sides that start with 1, got (1, 3, 3)",
        ),
        ({"condition": "text"}, "condition must be 'prefix' or 'none', got 'text'"),
        (
            {"cond_channels": (32, 64)},
            "cond_channels must be 5 widths, so that both encoders downsample by 16, got (32, 64)",
        ),
        (
            {"condition": "none", "cond_channels": (8,)},
            "cond_channels must be empty where condition is 'none', got (8,)",
        ),
        ({"vae_channels": 100}, "vae_norm_groups must be a divisor of every autoencoder width [100, 200, 400], got 32"),
        ({"refiner_steps": 1001}, "refiner_steps must be at most refiner_train_steps, got 1001"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_validation(changes: dict[str, Any], message: str) -> None:
    with raises(InvalidParamsError, f"config: {message}"):
        ModelConfig(**changes)


def test_unknown_keys_suggest_the_nearest() -> None:
    with raises(InvalidParamsError, "config.json: unknown key 'embed_dims'; did you mean 'embed_dim'?"):
        ModelConfig.from_dict({"embed_dims": 64})
    with raises(InvalidParamsError, "x: unknown key 'zzz'; known: alpha, beta"):
        reject_unknown_keys("x", {"zzz": 1}, {"beta", "alpha"})
    reject_unknown_keys("x", {"alpha": 1}, {"beta", "alpha"})


@pytest.mark.parametrize("values", [{"patch_nums": 5}, {"top_p": "high"}, {"depth": "24"}, {"top_k": None}])
def test_wrong_types_in_json(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidParamsError, match=r"^config(\.json)?: "):
        ModelConfig.from_dict(values)


@pytest.mark.parametrize(
    "values",
    [
        {"patch_nums": (1, 2.5, 4)},
        {"top_k": 2.5},
        {"norm_eps": -1.0},
        {"norm_eps": "small"},
        {"guidance_scale": math.nan},
        {"cond_channels": (0, 128, 256, 512, 1536)},
        {"rope_base": 0},
    ],
    ids=str,
)
def test_values_that_no_network_has(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidParamsError, match=f"^config: {next(iter(values))} must be "):
        ModelConfig.from_dict(values)
