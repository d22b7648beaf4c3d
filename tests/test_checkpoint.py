"""Every way to name a model, and every way in which a model can be wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import varsr_engine
from tests.golden_cases import GOLDEN_FOLDER, load_case
from varsr_engine import checkpoint as checkpoint_module
from varsr_engine.checkpoint import convert_checkpoint, open_checkpoint, save_model, write_checkpoint
from varsr_engine.config import ModelConfig
from varsr_engine.engine.engine import Engine
from varsr_engine.errors import (
    CheckpointMismatchError,
    InvalidParamsError,
    ModelLoadError,
    ModelNotFoundError,
    OutputError,
    UnsafeCheckpointError,
)

CASE = load_case(GOLDEN_FOLDER, "tiny")
WEIGHTS = CASE.weights()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as `varsr convert` writes it."""
    return save(tmp_path / "model", WEIGHTS)


def save(folder: Path, weights: dict[str, torch.Tensor], config: ModelConfig = CASE.config) -> Path:
    return write_checkpoint(folder, config, {n: tuple(t.shape) for n, t in weights.items()}, weights.__getitem__)


def published(folder: Path, weights: dict[str, torch.Tensor] = WEIGHTS) -> Path:
    """The published layout: two pickles with optimizer state and unused buffers beside the weights."""
    folder.mkdir()
    parts = {
        prefix: {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)}
        for prefix in ("transformer.", "vae.")
    }
    parts["transformer."] |= {
        "lvl_1L": torch.zeros(1, 129, dtype=torch.int64),
        "attn_bias_for_masking": torch.zeros(1, 1, 4, 4),
        "blocks.0.attn.zero_k_bias": torch.zeros(128),
    }
    parts["vae."]["quantize.ema_vocab_hit_SV"] = torch.zeros(6, 256)
    optimizer = {"state": {0: {"exp_avg": torch.zeros(7)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.95)}]}
    torch.save(
        {"epoch": 3, "trainer": {"var_wo_ddp": parts["transformer."], "var_opt": optimizer}}, folder / "VARSR.pth"
    )
    torch.save({"trainer": {"vae_local": parts["vae."]}}, folder / "VQVAE.pth")
    (folder / "config.json").write_text(CASE.config.to_json())
    return folder


def same_weights(source: Path) -> bool:
    opened = open_checkpoint(source)
    read = opened.open()
    return opened.config == CASE.config and all(torch.equal(read(n), t) for n, t in WEIGHTS.items())


# --- sources that work -------------------------------------------------------------------------------------


def test_a_folder_a_file_and_the_published_pair_hold_the_same_model(folder: Path, tmp_path: Path) -> None:
    assert same_weights(folder)
    assert same_weights(folder / "model.safetensors")
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((folder / "model.safetensors").read_bytes())
    assert same_weights(alone)  # the config is in its metadata
    assert same_weights(published(tmp_path / "pair"))


def test_the_config_of_published_shapes_needs_no_file() -> None:
    from varsr_engine.model.shapes import state_shapes

    for config in (ModelConfig.varsr_d24(), ModelConfig.c2i_d24()):
        assert ModelConfig.from_shapes(state_shapes(config)) == config


def test_scales_that_no_shape_tells_are_asked_for(tmp_path: Path) -> None:
    pair = published(tmp_path / "pair")
    (pair / "config.json").unlink()
    with pytest.raises(CheckpointMismatchError, match=r"patch_nums in a config[.]json"):
        open_checkpoint(pair)


def test_converting_is_lossless_in_float32(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    out = convert_checkpoint(published(tmp_path / "pair"), tmp_path / "out", on_progress=lambda *s: steps.append(s))
    assert same_weights(out)
    assert set(load_file(out / "model.safetensors")) == set(WEIGHTS)
    assert steps[-1][0] == steps[-1][1] == sum(t.numel() * 4 for t in WEIGHTS.values())


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_converting_to_16_bits_rounds_each_value_once(
    folder: Path, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    out = convert_checkpoint(folder, tmp_path / name, dtype=name)
    stored = load_file(out / "model.safetensors")
    assert all(torch.equal(stored[n], t.to(dtype)) for n, t in WEIGHTS.items())
    engine = Engine.from_pretrained(out, device="cpu")
    assert CASE.lr is not None
    assert torch.isfinite(engine.generate(CASE.lr).images).all()


def test_a_model_without_the_training_encoder_runs(tmp_path: Path) -> None:
    light = {n: t for n, t in WEIGHTS.items() if not n.startswith(("vae.encoder.", "vae.quant_conv."))}
    opened = open_checkpoint(save(tmp_path / "light", light))
    assert not opened.has_encoder and opened.num_parameters < sum(t.numel() for t in WEIGHTS.values())
    assert CASE.lr is not None
    Engine(opened).generate(CASE.lr)


def test_the_engine_keeps_no_folded_matrix(folder: Path) -> None:
    """The engine keeps no adaLN matrix: its parameters are the folded ones."""
    engine = Engine.from_pretrained(folder, device="cpu")
    weights = engine._pipeline._scale_loop.weights
    assert weights.adaln.shape == (2, CASE.config.depth, 6, CASE.config.embed_dim)
    C, H = CASE.config.embed_dim, CASE.config.num_heads
    linears = [part for block in weights.blocks for part in block if isinstance(part, tuple)]
    scales = [block.q_scale for block in weights.blocks]
    kept = sum(t.numel() for part in (*linears, scales) for t in part)
    assert kept == CASE.config.depth * (12 * C * C + 9 * C + H)


# --- one file with everything ------------------------------------------------------------------------------

ABOUT = {"name": "mini", "commit": "0123abc", "licence": "Apache-2.0"}


@pytest.mark.parametrize("encoder", [False, True])
def test_a_model_saved_as_one_file(tmp_path: Path, encoder: bool) -> None:
    config = dataclasses.replace(CASE.config, refiner_temperature=0.5, guidance_scale_tiled=3.0)
    path = save_model(tmp_path / "mini.safetensors", config, WEIGHTS, encoder=encoder, metadata=ABOUT)
    opened = open_checkpoint(path)
    assert opened.config == config and opened.metadata == ABOUT and opened.has_encoder == encoder
    assert set(opened.dtypes.values()) == {"F16"}
    read = opened.open()
    assert all(torch.equal(read(name), WEIGHTS[name].half()) for name in opened.shapes)
    assert os.listdir(tmp_path) == ["mini.safetensors"]
    with pytest.raises(OutputError, match="exists already"):
        save_model(path, config, WEIGHTS)
    save_model(path, CASE.config, WEIGHTS, dtype=torch.float32, encoder=True, overwrite=True)
    assert same_weights(path)


def test_what_does_not_fit_is_not_saved(tmp_path: Path) -> None:
    name = "transformer.head.weight"
    for spoiled, message in (
        (WEIGHTS | {name: WEIGHTS[name] * 1e6}, "not finite in torch.float16"),
        (WEIGHTS | {name: WEIGHTS[name][:-1]}, "has shape"),
        ({n: t for n, t in WEIGHTS.items() if n != name}, "is missing"),
    ):
        with pytest.raises(CheckpointMismatchError, match=message):
            save_model(tmp_path / "mini.safetensors", CASE.config, spoiled)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the one with the packaged model."""
    monkeypatch.setattr("varsr_engine.packaged.ASSETS", tmp_path / "assets")
    monkeypatch.delenv("VARSR_MODEL", raising=False)
    (tmp_path / "assets").mkdir()
    return tmp_path / "assets"


def test_the_packaged_model_has_a_name(assets: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in (None, "varsr-mini"):
        with pytest.raises(ModelNotFoundError, match="'varsr-mini', which comes with varsr_engine, is not in this"):
            Engine.from_pretrained(model, device="cpu")
    save_model(assets / "varsr-mini.safetensors", CASE.config, WEIGHTS, metadata=ABOUT)
    assert open_checkpoint("varsr-mini").metadata == ABOUT
    assert Engine.from_pretrained(device="cpu").model_id == "varsr-mini"
    assert varsr_engine.upscale(np.zeros((8, 8, 3), np.uint8)).model_id == "varsr-mini"
    monkeypatch.setenv("VARSR_MODEL", str(folder))
    assert Engine.from_pretrained(device="cpu").model_id == folder.name
    assert Engine.from_pretrained("varsr-mini", device="cpu").model_id == "varsr-mini"


# --- sources that do not -----------------------------------------------------------------------------------


def test_absent_models_are_named(tmp_path: Path) -> None:
    for source in (tmp_path / "nowhere", "no-such-folder", ""):
        with pytest.raises((ModelNotFoundError, ModelLoadError)):
            open_checkpoint(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match="holds no model"):
        open_checkpoint(tmp_path / "empty")


def test_a_hub_id_offline_fails_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match="no folder 'someone/some-model' here"):
        open_checkpoint("someone/some-model", local_files_only=True)


def test_half_of_the_published_pair(tmp_path: Path) -> None:
    pair = published(tmp_path / "pair")
    (pair / "VQVAE.pth").unlink()
    with pytest.raises(ModelNotFoundError, match=r"VQVAE[.]pth"):
        open_checkpoint(pair)
    with pytest.raises(ModelLoadError, match="give the folder"):
        open_checkpoint(pair / "VARSR.pth")


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo pwned > pwned.txt",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pair = published(tmp_path / "pair")
    torch.save({"trainer": {"var_wo_ddp": {"x": Payload()}}}, pair / "VARSR.pth")
    with pytest.raises(UnsafeCheckpointError, match=r"VARSR.pth: refused"):
        open_checkpoint(pair)
    assert not (tmp_path / "pwned.txt").exists()


def test_a_bare_pickle_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pair = published(tmp_path / "pair")
    (pair / "VARSR.pth").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ModelLoadError, match=r"not a complete torch[.]save archive"):
        open_checkpoint(pair)
    assert not (tmp_path / "pwned.txt").exists()


def test_other_keys_and_other_things_than_tensors(tmp_path: Path) -> None:
    pair = published(tmp_path / "pair")
    torch.save({"model": {}}, pair / "VARSR.pth")
    with pytest.raises(CheckpointMismatchError, match=r"\['trainer'\], found: model"):
        open_checkpoint(pair)
    torch.save({"trainer": {"var_wo_ddp": {"x": 1}}}, pair / "VARSR.pth")
    with pytest.raises(CheckpointMismatchError, match="only tensors"):
        open_checkpoint(pair)


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, 0.999])
def test_truncated_files(folder: Path, tmp_path: Path, keep: float) -> None:
    pair = published(tmp_path / "pair")
    for source, file in ((folder, folder / "model.safetensors"), (pair, pair / "VQVAE.pth")):
        data = file.read_bytes()
        file.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
        with pytest.raises(ModelLoadError, match=file.name):
            open_checkpoint(source)


def test_a_header_that_claims_too_much(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 2**62) + file.read_bytes()[8:])
    with pytest.raises(ModelLoadError, match="not a complete safetensors file"):
        open_checkpoint(folder)


def test_wrong_kinds_of_file(tmp_path: Path) -> None:
    text = tmp_path / "weights.txt"
    text.write_text("hello")
    with pytest.raises(ModelLoadError, match="not a model"):
        open_checkpoint(text)
    fake = tmp_path / "fake.safetensors"
    fake.write_text("hello")
    with pytest.raises(ModelLoadError, match=r"fake[.]safetensors"):
        open_checkpoint(fake)


def test_missing_unexpected_misshapen_and_mistyped_tensors(tmp_path: Path) -> None:
    name = "transformer.blocks.1.ffn.fc2.weight"

    def changed(label: str, **change: torch.Tensor | None) -> Path:
        tensors = WEIGHTS | {key.replace("__", "."): value for key, value in change.items()}
        kept = {n: t.clone() for n, t in tensors.items() if t is not None}
        path = tmp_path / f"{label}.safetensors"
        save_file(kept, path, metadata={"config": json.dumps(CASE.config.to_dict())})
        return path

    key = name.replace(".", "__")
    with pytest.raises(CheckpointMismatchError, match=rf"'{name}' is missing, expected shape \(128, 512\)"):
        open_checkpoint(changed("missing", **{key: None}))
    with pytest.raises(CheckpointMismatchError, match=rf"'{name}' has shape \(512, 128\), expected \(128, 512\)"):
        open_checkpoint(changed("misshapen", **{key: WEIGHTS[name].t().contiguous()}))
    with pytest.raises(CheckpointMismatchError, match=rf"'{name}' has dtype I32, expected one of"):
        open_checkpoint(changed("mistyped", **{key: WEIGHTS[name].int()}))
    with pytest.raises(CheckpointMismatchError, match=r"'transformer.extra' with shape \(3,\) is unexpected"):
        open_checkpoint(changed("unexpected", transformer__extra=torch.zeros(3)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ('{"depht": 2}', "did you mean 'depth'"),
        ('{"depth": "two"}', "positive integer"),
        ('{"patch_nums": [2, 1]}', "patch_nums"),
        ('{"patch_nums": 3}', "wrong type"),
    ],
)
def test_bad_configs(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=message):
        open_checkpoint(folder)


# --- writing -----------------------------------------------------------------------------------------------


def test_a_model_is_not_written_over_by_accident(folder: Path, tmp_path: Path) -> None:
    pair = published(tmp_path / "pair")
    with pytest.raises(OutputError, match="already holds a model"):
        convert_checkpoint(pair, folder)
    with pytest.raises(OutputError, match="another folder than its source"):
        convert_checkpoint(folder, folder, overwrite=True)
    with pytest.raises(InvalidParamsError, match="dtype must be one of"):
        convert_checkpoint(pair, tmp_path / "out", dtype="int8")
    convert_checkpoint(pair, folder, overwrite=True)
    assert same_weights(folder)


def test_an_interrupted_conversion_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(folder, tmp_path / "out", on_progress=interrupt)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("varsr_engine.atomic.os.fsync", full)
    with pytest.raises(OutputError, match="disk is full"):
        convert_checkpoint(folder, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot create"):
        checkpoint_module.convert_checkpoint(folder, tmp_path / "file" / "out")
