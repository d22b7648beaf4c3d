"""UpscaleParams, EngineConfig and batch settings: ranges, precedence, and the size of the output."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels.harness import raises
from varsr_engine.config import ModelConfig
from varsr_engine.engine.params import MAX_SEED, EngineConfig, UpscaleParams
from varsr_engine.engine.request import BatchRequest, batch_request, per_image
from varsr_engine.errors import InvalidParamsError

# --- UpscaleParams ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": 0}, "scale must be a number in (0, 64], got 0"),
        ({"scale": -2.0}, "scale must be a number in (0, 64], got -2.0"),
        ({"scale": 65}, "scale must be a number in (0, 64], got 65"),
        ({"scale": math.nan}, "scale must be a number in (0, 64], got nan"),
        ({"scale": "4"}, "scale must be a number in (0, 64], got '4'"),
        ({"scale": True}, "scale must be a number in (0, 64], got True"),
        ({"target_size": (10, 0)}, "target_size must be (width, height) in pixels, got (10, 0)"),
        ({"target_size": (10,)}, "target_size must be (width, height) in pixels, got (10,)"),
        ({"target_size": "10x10"}, "target_size must be (width, height) in pixels, got '10x10'"),
        ({"target_size": (1.5, 2)}, "target_size must be (width, height) in pixels, got (1.5, 2)"),
        ({"longest_side": 0}, "longest_side must be a positive integer, got 0"),
        ({"longest_side": 512.0}, "longest_side must be a positive integer, got 512.0"),
        ({"scale": 2, "longest_side": 9}, "scale and longest_side must be given one at a time, got [2, 9]"),
        (
            {"scale": 2, "target_size": (3, 4), "longest_side": 9},
            "scale and target_size and longest_side must be given one at a time, got [2, (3, 4), 9]",
        ),
        ({"cfg": -0.1}, "cfg must be a number >= 0, got -0.1"),
        ({"cfg": math.inf}, "cfg must be a number >= 0, got inf"),
        ({"label": -1}, "label must be an integer >= 0, got -1"),
        ({"label": None}, "label must be an integer >= 0, got None"),
        ({"top_k": -1}, "top_k must be 0 (off) or a positive integer, got -1"),
        ({"top_k": 1.0}, "top_k must be 0 (off) or a positive integer, got 1.0"),
        ({"top_p": 0}, "top_p must be in (0, 1], got 0"),
        ({"top_p": 1.01}, "top_p must be in (0, 1], got 1.01"),
        ({"temperature": 0.0}, "temperature must be a number > 0, got 0.0"),
        ({"temperature": None}, "temperature must be a number > 0, got None"),
        ({"steps": 0}, "steps must be an integer in [1, 1000], got 0"),
        ({"steps": 1001}, "steps must be an integer in [1, 1000], got 1001"),
        ({"refiner_temperature": -0.5}, "refiner_temperature must be a number >= 0, got -0.5"),
        ({"tile": "on"}, "tile must be one of ('auto', 'published', 'off'), got 'on'"),
        ({"tile_overlap": -1}, "tile_overlap must be an integer >= 0, got -1"),
        ({"tile_overlap": 2.0}, "tile_overlap must be an integer >= 0, got 2.0"),
        ({"refiner": "fast"}, "refiner must be one of ('on', 'off'), got 'fast'"),
        ({"refiner": True}, "refiner must be one of ('on', 'off'), got True"),
        ({"fidelity": -0.1}, "fidelity must be in [0, 1], got -0.1"),
        ({"color_fix": "wavelets"}, "color_fix must be one of ('adain', 'wavelet', 'none'), got 'wavelets'"),
        ({"alpha": None}, "alpha must be one of ('keep', 'drop'), got None"),
    ],
)
def test_validation(values: dict[str, Any], message: str) -> None:
    with raises(InvalidParamsError, message):
        UpscaleParams(**values)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, 1.5, True, "7", math.nan, [1]])
def test_bad_seeds(seed: Any) -> None:
    with raises(InvalidParamsError, f"seed must be an integer in [0, 2^63), got {seed!r}"):
        UpscaleParams(seed=seed)


@pytest.mark.parametrize("seed", [None, 0, 1, MAX_SEED])
def test_good_seeds(seed: int | None) -> None:
    assert UpscaleParams(seed=seed).seed == seed


def test_edges_that_are_allowed() -> None:
    UpscaleParams(scale=64)
    UpscaleParams(scale=0.1, cfg=0, top_k=0, top_p=1, temperature=1e-3, steps=1000, label=3829)


@pytest.mark.parametrize("name", ["scale", "cfg", "temperature"])
def test_enormous_integers(name: str) -> None:
    """JSON allows them."""
    with pytest.raises(InvalidParamsError):
        UpscaleParams.from_dict(json.loads(f'{{"{name}": 1{"0" * 400}}}'))


@pytest.mark.parametrize(
    ("params", "size", "expected"),
    [
        ({}, (100, 50), (400, 200)),
        ({"scale": 2}, (33, 7), (66, 14)),
        ({"scale": 1.5}, (33, 7), (round(49.5), round(10.5))),
        ({"scale": 0.01}, (30, 300), (1, 3)),
        ({"target_size": (640, 480)}, (3, 1000), (640, 480)),
        ({"target_size": [640, 480]}, (3, 1000), (640, 480)),
        ({"longest_side": 1000}, (300, 200), (1000, 667)),
        ({"longest_side": 1000}, (200, 300), (667, 1000)),
        ({"longest_side": 512}, (512, 512), (512, 512)),
        ({"longest_side": 10}, (1000, 1), (10, 1)),
    ],
)
def test_output_size(params: dict[str, Any], size: tuple[int, int], expected: tuple[int, int]) -> None:
    result = UpscaleParams(**params).output_size(*size)
    assert result == expected and all(type(s) is int for s in result)


def test_replace_validates_and_names_the_nearest() -> None:
    params = UpscaleParams(seed=7)
    assert params.replace(cfg=2) == UpscaleParams(seed=7, cfg=2) and params.cfg is None
    with raises(InvalidParamsError, "upscale: unknown key 'sed'; did you mean 'seed'?"):
        params.replace(sed=3)
    with raises(InvalidParamsError, "cfg must be a number >= 0, got -1"):
        params.replace(cfg=-1)
    with raises(InvalidParamsError, "scale and target_size must be given one at a time, got [2, (3, 4)]"):
        UpscaleParams(target_size=(3, 4)).replace(scale=2)


def test_dict_round_trip() -> None:
    for params in (UpscaleParams(), UpscaleParams(target_size=(5, 6), seed=None, top_k=20, refiner="off")):
        assert UpscaleParams.from_dict(json.loads(json.dumps(params.to_dict()))) == params
        assert pickle.loads(pickle.dumps(params)) == params
        assert hash(params) == hash(UpscaleParams.from_dict(params.to_dict()))
    assert UpscaleParams.from_dict({}) == UpscaleParams()
    with raises(InvalidParamsError, "upscale: unknown key 'colour_fix'; did you mean 'color_fix'?"):
        UpscaleParams.from_dict({"colour_fix": "none"})


def test_a_key_called_self() -> None:
    with pytest.raises(InvalidParamsError):
        UpscaleParams.from_dict({"self": 1})


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        UpscaleParams().seed = 1


# --- EngineConfig ----------------------------------------------------------------------------------------------------

Write = Callable[[str], Path]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("VARSR_"):
            monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a TOML file."""

    def write(text: str) -> Path:
        path = tmp_path / "varsr.toml"
        path.write_text(text)
        return path

    return write


def test_precedence(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    """Overrides > environment > file > defaults, setting by setting."""
    assert EngineConfig.resolve() == EngineConfig()
    path = write('device = "cuda:1"\ndtype = "bf16"\nbatch_size = 2\nmax_side = 100\n')
    from_file = EngineConfig.resolve(path)
    assert from_file == EngineConfig(device="cuda:1", dtype="bf16", batch_size=2, max_side=100)
    monkeypatch.setenv("VARSR_DTYPE", "fp16")
    monkeypatch.setenv("VARSR_BATCH_SIZE", "3")
    assert EngineConfig.resolve(path) == dataclasses.replace(from_file, dtype="fp16", batch_size=3)
    resolved = EngineConfig.resolve(path, batch_size=4, device=None)
    assert resolved == EngineConfig(device="cuda:1", dtype="fp16", batch_size=4, max_side=100)


def test_file_from_the_environment(monkeypatch: pytest.MonkeyPatch, write: Write, tmp_path: Path) -> None:
    monkeypatch.setenv("VARSR_CONFIG", str(write("batch_size = 5")))
    assert EngineConfig.resolve().batch_size == 5
    other = tmp_path / "other.toml"
    other.write_text("batch_size = 6")
    assert EngineConfig.resolve(str(other)).batch_size == 6


def test_empty_environment_variables_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VARSR_DEVICE", "")
    monkeypatch.setenv("VARSR_BATCH_SIZE", "")
    monkeypatch.setenv("VARSR_CONFIG", "")
    assert EngineConfig.resolve() == EngineConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"batch_size": True}, "batch_size must be a positive integer, got True"),
        ({"max_input_pixels": -1}, "max_input_pixels must be a positive integer, got -1"),
        ({"max_side": 1e3}, "max_side must be a positive integer, got 1000.0"),
        ({"device": ""}, "device must be a name, got ''"),
        ({"backend": 1}, "backend must be a name, got 1"),
        ({"dtype": "float16"}, "dtype must be one of auto, fp32, fp16, bf16, got 'float16'"),
        ({"numerics": "exact"}, "numerics must be fast or batch_invariant, got 'exact'"),
    ],
)
def test_engine_validation(values: dict[str, Any], message: str) -> None:
    with raises(InvalidParamsError, message):
        EngineConfig(**values)
    with raises(InvalidParamsError, message):
        EngineConfig.resolve(**values)


def test_numerics_from_everywhere(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    assert not EngineConfig().batch_invariant
    path = write('numerics = "batch_invariant"')
    assert EngineConfig.resolve(path).batch_invariant
    monkeypatch.setenv("VARSR_NUMERICS", "fast")
    assert not EngineConfig.resolve(path).batch_invariant
    resolved = EngineConfig.resolve(path, numerics="batch_invariant", batch_size=8)
    assert resolved.batch_invariant and resolved.images_per_pass == 1


@pytest.mark.parametrize("text", ["two", "-1", "1.5", "0x10"])
def test_bad_number_in_the_environment(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("VARSR_BATCH_SIZE", text)
    with raises(InvalidParamsError, f"VARSR_BATCH_SIZE must be a positive integer, got {text!r}"):
        EngineConfig.resolve()


def test_superscript_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VARSR_BATCH_SIZE", "²")
    with raises(InvalidParamsError, "VARSR_BATCH_SIZE must be a positive integer, got '²'"):
        EngineConfig.resolve()


def test_bad_files(write: Write, tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    with raises(InvalidParamsError, f"config file {str(missing)!r} cannot be read: No such file or directory"):
        EngineConfig.resolve(missing)
    path = write("batch_size = ")
    with pytest.raises(InvalidParamsError, match=r"varsr\.toml' is not valid TOML: "):
        EngineConfig.resolve(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidParamsError, match=r"varsr\.toml' is not valid TOML: "):
        EngineConfig.resolve(path)
    with raises(InvalidParamsError, f"config file {str(path)!r}: unknown key 'dtpe'; did you mean 'dtype'?"):
        EngineConfig.resolve(write('dtpe = "fp16"'))
    with raises(InvalidParamsError, "batch_size must be a positive integer, got '2'"):
        EngineConfig.resolve(write('batch_size = "2"'))


def test_a_folder_as_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidParamsError):
        EngineConfig.resolve(tmp_path)


def test_unknown_override_suggests_the_nearest() -> None:
    with raises(InvalidParamsError, "engine config: unknown key 'batchsize'; did you mean 'batch_size'?"):
        EngineConfig.resolve(batchsize=2)
    with raises(InvalidParamsError, "engine config: unknown key 'batchsize'; did you mean 'batch_size'?"):
        EngineConfig.resolve(batchsize=None)


# --- settings of a batch ---------------------------------------------------------------------------------------------


def settings(config: ModelConfig | None = None, batch: int = 2, **changes: Any) -> BatchRequest:
    defaults: dict[str, Any] = dict(labels=0, guidance_scale=None, seeds=0, top_k=None, top_p=None, temperature=1.0)
    return batch_request(config or ModelConfig(), batch, torch.device("cpu"), **(defaults | changes))


def test_batch_defaults_are_the_models() -> None:
    request = settings()
    assert request.batch == 2 and request.greedy
    assert request.guidance.tolist() == [6.0, 6.0] and request.top_k.tolist() == [1, 1]
    prior = settings(ModelConfig.c2i_d24(), labels=[3829, 3830])
    assert not prior.greedy and prior.guidance.tolist() == [4.0, 4.0] and prior.top_k.tolist() == [20, 20]
    assert prior.top_p.tolist() == [0.75, 0.75]


def test_batch_values_one_an_image() -> None:
    request = settings(seeds=[1, MAX_SEED], top_k=torch.tensor([1, 0]), guidance_scale=(0, 2.5))
    assert request.seeds.tolist() == [1, MAX_SEED] and request.seeds.dtype == torch.int64
    assert request.guidance.tolist() == [0.0, 2.5] and not request.greedy
    twice = request.repeat(2, torch.arange(4))
    assert twice.guidance.tolist() == [0.0, 0.0, 2.5, 2.5] and twice.seeds.tolist() == [0, 1, 2, 3]
    assert twice.top_k.tolist() == [1, 1, 0, 0] and not twice.greedy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": -1}, f"seed must be an integer in [0, {MAX_SEED}], got -1"),
        ({"seeds": [0, 2**63]}, f"seed must be an integer in [0, {MAX_SEED}], got {2**63}"),
        ({"seeds": 0.5}, f"seed must be an integer in [0, {MAX_SEED}], got 0.5"),
        ({"seeds": [1, 2, 3]}, "seed must be one value or one an image (2), got 3 values"),
        ({"labels": 2}, "labels must be an integer in [0, 1], got 2"),
        ({"guidance_scale": math.nan}, "guidance_scale must be a number in [0, 10000.0], got nan"),
        ({"top_p": 0.0}, "top_p must be a number in [1e-06, 1], got 0.0"),
        ({"temperature": [1.0, -1.0]}, "temperature must be a number in [1e-06, 1000000.0], got -1.0"),
    ],
)
def test_bad_batch_values(changes: dict[str, Any], message: str) -> None:
    with raises(InvalidParamsError, message):
        settings(**changes)


def test_per_image() -> None:
    assert per_image("x", 3, 2, 0, 9, integer=True) == [3, 3]
    assert per_image("x", range(2), 2, 0, 9, integer=True) == [0, 1]
    assert per_image("x", torch.tensor([0.5]), 1, 0, 9, integer=False) == [0.5]
    assert per_image("x", [], 0, 0, 9, integer=False) == []
