"""Thirty steps of both stages: losses fall, an interrupted run goes on identically, and the engine takes the result."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from varsr_engine.checkpoint import open_checkpoint
from varsr_engine.engine.engine import Engine
from varsr_engine.errors import CheckpointMismatchError, InvalidParamsError, OutputError
from varsr_engine.model.shapes import state_shapes
from varsr_engine.training.autoencoder import AutoencoderStage
from varsr_engine.training.config import OptimizerConfig, TrainConfig
from varsr_engine.training.dataset import CropDataset
from varsr_engine.training.export import export_model, load_autoencoder
from varsr_engine.training.stage import Batch, Stage
from varsr_engine.training.trainer import STATE_FILE, Trainer, learning_rate, parameter_groups, prepare_folder
from varsr_engine.training.transformer import TransformerStage

STAGES = ("autoencoder", "transformer")


def make_stage(name: str, config: TrainConfig) -> Stage:
    torch.manual_seed(0)
    if name == "autoencoder":
        return AutoencoderStage(config)
    return TransformerStage(config, AutoencoderStage(config).vae.state_dict())


def trainer_of(name: str, config: TrainConfig, crops: CropDataset, folder: Path) -> Trainer:
    prepare_folder(folder, resume=True)
    return Trainer(make_stage(name, config), crops, config.optimizer, folder)


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", STAGES)
def test_losses_fall_and_a_resumed_run_is_the_same(
    name: str, config: TrainConfig, crops: CropDataset, tmp_path: Path
) -> None:
    whole = trainer_of(name, config, crops, tmp_path / "whole")
    whole.train(quiet=True)
    log = log_of(tmp_path / "whole")
    assert [entry["step"] for entry in log] == [5, 10, 15, 20, 25, 30]
    for loss in ("color",) if name == "autoencoder" else ("tokens", "refiner"):
        assert log[-1][loss] < 0.98 * log[0][loss], loss

    trainer_of(name, config, crops, tmp_path / "parts").train(13, quiet=True)
    second = trainer_of(name, config, crops, tmp_path / "parts")
    second.resume()
    assert second.step == 13
    second.train(quiet=True)
    states = [torch.load(tmp_path / part / STATE_FILE, weights_only=True) for part in ("whole", "parts")]
    for kind in ("weights", "averaged"):
        for key, value in states[0][kind].items():
            assert torch.equal(value, states[1][kind][key]), key
    assert log_of(tmp_path / "parts")[-1]["loss"] == log[-1]["loss"]


def test_preview_is_a_picture_with_a_row_an_image(config: TrainConfig, crops: CropDataset, tmp_path: Path) -> None:
    trainer_of("transformer", config, crops, tmp_path).train(quiet=True)
    side = config.model.image_side
    with Image.open(tmp_path / "preview-000030.png") as picture:
        assert picture.size == (3 * (side + 4), 4 * (side + 4))


def test_the_engine_takes_the_exported_model(config: TrainConfig, crops: CropDataset, tmp_path: Path) -> None:
    trainer = trainer_of("transformer", config, crops, tmp_path)
    trainer.train(2, quiet=True)
    path = export_model(tmp_path, config.model, tmp_path / "model.safetensors", metadata={"licence": "Apache-2.0"})
    engine = Engine.from_pretrained(path)
    result = engine.upscale(np.full((9, 7, 3), 128, np.uint8), scale=4)
    assert result.size == (28, 36)
    assert engine.model_config == config.model and open_checkpoint(path).preview_shapes


def test_averaged_weights_lag_behind(config: TrainConfig, crops: CropDataset, tmp_path: Path) -> None:
    """After one step from w0 to w1 with decay min(0.9, 1/10): 0.1 w0 + 0.9 w1."""
    trainer = trainer_of("autoencoder", config, crops, tmp_path)
    name = "vae.decoder.conv_in.weight"
    before = trainer.stage.state_dict()[name].clone()
    trainer.train(1, quiet=True)
    after = trainer.stage.state_dict()[name]
    assert torch.allclose(trainer.averaged[name], 0.1 * before + 0.9 * after, atol=1e-6)
    with trainer.averaged_weights():
        assert torch.equal(trainer.stage.state_dict()[name], trainer.averaged[name])
    assert torch.equal(trainer.stage.state_dict()[name], after)


def test_an_interrupt_saves_the_state(config: TrainConfig, crops: CropDataset, tmp_path: Path) -> None:
    trainer = trainer_of("autoencoder", config, crops, tmp_path)
    forward = trainer.stage.forward

    def interrupted(batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        if step == 4:
            raise KeyboardInterrupt
        return forward(batch, step)

    trainer.stage.forward = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.train(quiet=True)
    assert torch.load(tmp_path / STATE_FILE, weights_only=True)["step"] == 4


def test_learning_rate() -> None:
    config = OptimizerConfig(steps=110, warmup_steps=10, learning_rate=1.0, min_ratio=0.1)
    assert [learning_rate(config, step) for step in (0, 9)] == pytest.approx([0.1, 1.0])
    assert learning_rate(config, 60) == pytest.approx(0.55)
    assert learning_rate(config, 110) == pytest.approx(0.1)


def test_tables_and_vectors_are_not_for_muon(config: TrainConfig) -> None:
    stage = make_stage("transformer", config)
    kept, muon, other = parameter_groups(stage, 0.1)
    names = {id(p): name for name, p in stage.named_parameters()}
    assert {names[id(p)].split(".")[2] for p in kept["params"]} == {"con_embedding"}  # the autoencoder is frozen
    orthogonal = {names[id(p)] for p in (*kept["params"], *muon["params"])}
    assert "model.transformer.blocks.0.ffn.fc1.weight" in orthogonal
    assert "model.transformer.con_embedding.conv_in.weight" in orthogonal
    for name in ("head.weight", "word_embed.weight", "class_emb.weight", "pos_start", "blocks.0.ffn.fc1.bias"):
        assert f"model.transformer.{name}" in {names[id(p)] for p in other["params"]}
    assert not any(name.startswith("model.vae.") for name in orthogonal)
    autoencoder = make_stage("autoencoder", config)
    names = {id(p): name for name, p in autoencoder.named_parameters()}
    kept_names = {names[id(p)] for p in parameter_groups(autoencoder, 0.1)[0]["params"]}
    assert {"vae.encoder.conv_in.weight", "vae.decoder.up.0.block.0.nin_shortcut.weight"} <= kept_names
    assert not kept_names & {"vae.quant_conv.weight", "vae.encoder.conv_out.weight", "vae.decoder.conv_out.weight"}


def test_the_autoencoder_stays_frozen_in_stage_2(config: TrainConfig, crops: CropDataset, tmp_path: Path) -> None:
    trainer = trainer_of("transformer", config, crops, tmp_path)
    before = {n: t.clone() for n, t in trainer.stage.state_dict().items() if n.startswith("model.vae.")}
    trainer.train(3, quiet=True)
    assert all(torch.equal(trainer.stage.state_dict()[n], t) for n, t in before.items())


class TestErrors:
    def test_nothing_to_resume(self, config: TrainConfig, crops: CropDataset, tmp_path: Path) -> None:
        with pytest.raises(InvalidParamsError, match="nothing to resume"):
            trainer_of("autoencoder", config, crops, tmp_path).resume()

    def test_state_of_another_stage(self, config: TrainConfig, crops: CropDataset, tmp_path: Path) -> None:
        trainer_of("autoencoder", config, crops, tmp_path).save()
        with pytest.raises(CheckpointMismatchError, match="AutoencoderStage, expected TransformerStage"):
            trainer_of("transformer", config, crops, tmp_path).resume()

    def test_an_earlier_run_is_not_overwritten(self, config: TrainConfig, crops: CropDataset, tmp_path: Path) -> None:
        trainer_of("autoencoder", config, crops, tmp_path).save()
        with pytest.raises(OutputError, match="--resume"):
            prepare_folder(tmp_path, resume=False)

    def test_autoencoder_folder(self, config: TrainConfig, crops: CropDataset, tmp_path: Path) -> None:
        with pytest.raises(Exception, match=r"holds no state\.pt"):
            load_autoencoder(tmp_path)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"optimizer": {"stepz": 3}}, "stepz"),
            ({"optimizer": {"steps": "many"}}, "of type int"),
            ({"optimizer": {"steps": 0}}, "positive"),
            ({"data": {"poor_fraction": 2.0}}, r"in \[0, 1\]"),
            ({"optimizer": {"autocast": "int8"}}, "none, bf16, fp16"),
            ({"optimiser": {}}, "optimizer"),
        ],
    )
    def test_bad_configs(self, values: dict[str, dict[str, object]], message: str) -> None:
        with pytest.raises(InvalidParamsError, match=message):
            TrainConfig.from_dict(values)

    def test_absent_config_names_the_shipped_ones(self) -> None:
        with pytest.raises(InvalidParamsError, match="mini-autoencoder, mini-transformer"):
            TrainConfig.load("absent.toml")


def test_shipped_configs_are_one_small_model() -> None:
    first, second = (TrainConfig.load(f"mini-{stage}").model for stage in STAGES)
    defaults: dict[str, object] = {"guidance_scale": 0.0, "refiner_temperature": 0.0, "refiner_residual_scale": 1.0}
    defaults |= {"color_fix": "adain", "fidelity": 0.0}  # of generation: stage 1 has none of them
    assert first.to_dict() | defaults == second.to_dict() | defaults
    assert sum(math.prod(shape) for shape in state_shapes(second).values()) <= 8_000_000
