"""What a training run is: one TOML file, read into frozen, validated data."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from varsr_engine.config import ModelConfig, reject_unknown_keys
from varsr_engine.errors import InvalidParamsError

CONFIG_FOLDER = Path(__file__).parent / "configs"
AUTOCAST = ("none", "bf16", "fp16")
SECTIONS = ("model", "data", "optimizer", "autoencoder", "transformer")

T = TypeVar("T")


def _check(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise InvalidParamsError(f"training config: {name} must be {expected}, got {got!r}")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Where images come from when no folder is given, and how they are spoiled.

    pool_size synthetic images of pool_side pixels are made once; crops of the model's tile are cut from them.
    mild_fraction: share of inputs that go through the mild degradation instead of the second-order one.
    poor_fraction: share of samples with label 1, whose target is deliberately poor.
    """

    pool_size: int = 600
    pool_side: int = 768
    pool_seed: int = 1
    mild_fraction: float = 0.25
    poor_fraction: float = 0.2
    workers: int = 1

    def __post_init__(self) -> None:
        for name in ("pool_size", "pool_side"):
            _check(getattr(self, name) >= 1, f"data.{name}", "a positive integer", getattr(self, name))
        for name in ("mild_fraction", "poor_fraction"):
            _check(0 <= getattr(self, name) <= 1, f"data.{name}", "in [0, 1]", getattr(self, name))
        _check(self.workers >= 0, "data.workers", "an integer >= 0", self.workers)


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """Muon with AdamW, a linear warm-up and a cosine decay to min_ratio of the learning rate, clipping and an EMA."""

    steps: int = 10_000
    batch_size: int = 16
    learning_rate: float = 1e-3
    min_ratio: float = 0.05
    warmup_steps: int = 100
    momentum: float = 0.95  # Muon's; the betas are AdamW's
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    autocast: str = "bf16"
    log_every: int = 20
    save_every: int = 200
    preview_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "save_every", "preview_every"):
            _check(getattr(self, name) >= 1, f"optimizer.{name}", "a positive integer", getattr(self, name))
        for name in ("learning_rate", "clip_norm"):
            _check(getattr(self, name) > 0, f"optimizer.{name}", "a number > 0", getattr(self, name))
        for name in ("min_ratio", "momentum", "beta1", "beta2", "ema_decay"):
            _check(0 <= getattr(self, name) <= 1, f"optimizer.{name}", "in [0, 1]", getattr(self, name))
        _check(self.warmup_steps >= 0, "optimizer.warmup_steps", "an integer >= 0", self.warmup_steps)
        _check(self.autocast in AUTOCAST, "optimizer.autocast", f"one of {', '.join(AUTOCAST)}", self.autocast)


@dataclass(frozen=True, slots=True)
class AutoencoderConfig:
    """Weights of stage 1's losses.

    continuous_fraction: share of a batch that is decoded from the continuous latent plus Gaussian noise of
    latent_noise times its standard deviation, as the decoder meets it behind the refiner; the rest is decoded from the
    quantised one. revive_every: steps between replacements of codebook entries used less than revive_below times the
    mean, until revive_until of all steps are done.
    """

    gradient_weight: float = 1.0
    codebook_weight: float = 1.0
    commitment: float = 0.25
    latent_penalty: float = 1e-3
    latent_noise: float = 0.1
    continuous_fraction: float = 0.5
    revive_every: int = 20
    revive_below: float = 0.03
    revive_until: float = 0.7


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """Weights of stage 2's losses, and what the transformer is fed.

    refiner_weight and timesteps (a token) are the paper's. self_fed: share of a batch whose inputs are the model's own
    greedy tokens instead of the nearest ones, so that it learns to correct its errors; token_noise: on the others,
    largest share of tokens that are replaced by another near entry. Both 0: the paper's teacher forcing.
    self_fed_from: first step at which the model feeds itself.
    """

    refiner_weight: float = 2.0
    variance_weight: float = 1.0
    timesteps: int = 4
    self_fed: float = 0.0
    self_fed_from: int = 0
    token_noise: float = 0.0
    local_heads: bool = False


@dataclass(frozen=True, slots=True)
class TrainConfig:
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> TrainConfig:
        """A TOML file, or the name of one that ships with the package. An unknown key is an error."""
        shipped = CONFIG_FOLDER / f"{source}.toml"
        path = shipped if shipped.is_file() else Path(source)
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            names = ", ".join(sorted(p.stem for p in CONFIG_FOLDER.glob("*.toml")))
            raise InvalidParamsError(
                f"training config {str(source)!r} cannot be read: {error.strerror}; shipped ones: {names}"
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidParamsError(f"training config {str(source)!r} is not valid TOML: {error}") from None
        return cls.from_dict(values, path.name)

    @classmethod
    def from_dict(cls, values: dict[str, Any], name: str = "training config") -> TrainConfig:
        reject_unknown_keys(name, values, set(SECTIONS))
        return cls(
            model=ModelConfig.from_dict(values.get("model", {})),
            data=_section(DataConfig, name, "data", values),
            optimizer=_section(OptimizerConfig, name, "optimizer", values),
            autoencoder=_section(AutoencoderConfig, name, "autoencoder", values),
            transformer=_section(TransformerConfig, name, "transformer", values),
        )

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "model": self.model.to_dict()}


def _section(kind: type[T], name: str, section: str, values: dict[str, Any]) -> T:
    given = values.get(section, {})
    known = {f.name: str(f.type) for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    reject_unknown_keys(f"{name}: [{section}]", given, set(known))
    for key, value in given.items():
        accepted = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}[known[key]]
        is_kind = isinstance(value, accepted) and (isinstance(value, bool) == (known[key] == "bool"))
        _check(is_kind, f"{section}.{key}", f"of type {known[key]}", value)
    return kind(**given)
