"""The settings of an engine and of one request: plain, frozen, validated data."""

from __future__ import annotations

import dataclasses
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from varsr_engine.config import ColorFix, ModelConfig, reject_unknown_keys
from varsr_engine.engine.quantization import QUANTIZATIONS, Fp8Switches, parse_indices
from varsr_engine.errors import InvalidParamsError

if TYPE_CHECKING:
    from varsr_engine.imaging import ReadLimits

AlphaMode = Literal["keep", "drop"]
RefinerMode = Literal["on", "off"]
TileMode = Literal["auto", "published", "off"]
PreviewMode = Literal["none", "latent", "decoded"]
PresetName = Literal["quality", "balanced", "fast"]

MAX_SEED = 2**63 - 1
MAX_PREVIEW_SIDE = 2048


def _require(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise InvalidParamsError(f"{name} must be {expected}, got {got!r}")


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


def is_integer(value: object, low: int, high: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


@dataclass(frozen=True, slots=True)
class UpscaleParams:
    """How to upscale one image. None stands for the preset's choice, else the model's own default.

    scale: output size over input size. target_size: (width, height) of the output; longest_side: its longest
    side, aspect kept; at most one of the three may be set (scale 4 if none).
    seed: of the refiner's and the sampler's noise; None draws one, which the result reports.
    cfg: strength of image-based classifier-free guidance. label: class of the positive branch (0: high quality).
    top_k, top_p, temperature: token sampling; top_k = 1 is the argmax, top_k = 0 switches the limit off.
    steps: refiner steps; fewer than the model's is faster and not exact.
    refiner_temperature: factor on the refiner's noise, its start included; below 1 smoother, 0 deterministic.
    color_fix: how the output's colours are brought back to the input's.
    fidelity: share of the resized input in the output: 0 is the network's own result, 1 the input.
    tile: auto cuts outputs larger than the model's tile into overlapping tiles, and decodes in bounded memory;
    published decodes the whole latent at once, as the published code does; off resizes every image to one tile and its
    result back. tile_overlap: latent cells that neighbouring tiles share (a quarter of a tile if None).
    preset: quality is exact; balanced and fast take fewer refiner steps and guided scales (docs/presets.md).
    guided_scales: how many of the model's first scales have guidance; fewer than all is faster and not exact: the
    others run on half the rows, and so does the refiner, which follows the last scale.
    stop_at_scale: how many of the model's scales run; fewer than all are a draft, without the refiner, much faster.
    previews: what events show of a picture on its way (`Engine.stream`, `astream`, `submit(events=True)`): latent maps
    cells to colours, at next to no cost; decoded runs the decoder on a tile after every scale. Neither changes the
    result. preview_max_side: longest side of a preview in pixels; none is larger than the output.
    """

    scale: float | None = None
    target_size: tuple[int, int] | None = None
    longest_side: int | None = None
    seed: int | None = 0
    cfg: float | None = None
    label: int = 0
    top_k: int | None = None
    top_p: float | None = None
    temperature: float = 1.0
    steps: int | None = None
    refiner_temperature: float | None = None
    refiner: RefinerMode = "on"
    color_fix: ColorFix | None = None
    fidelity: float | None = None
    alpha: AlphaMode = "keep"
    tile: TileMode = "auto"
    tile_overlap: int | None = None
    preset: PresetName = "quality"
    guided_scales: int | None = None
    stop_at_scale: int | None = None
    previews: PreviewMode = "none"
    preview_max_side: int = 256

    def __post_init__(self) -> None:
        if self.target_size is not None:
            ok = isinstance(self.target_size, (tuple, list)) and len(self.target_size) == 2
            ok = ok and all(is_integer(s, 1) for s in self.target_size)
            _require(ok, "target_size", "(width, height) in pixels", self.target_size)
            object.__setattr__(self, "target_size", tuple(self.target_size))
        given = [n for n in ("scale", "target_size", "longest_side") if getattr(self, n) is not None]
        _require(len(given) <= 1, " and ".join(given), "given one at a time", [getattr(self, n) for n in given])
        if self.scale is not None:
            _require(is_number(self.scale) and 0 < self.scale <= 64, "scale", "a number in (0, 64]", self.scale)
        if self.longest_side is not None:
            _require(is_integer(self.longest_side, 1), "longest_side", "a positive integer", self.longest_side)
        if self.seed is not None:
            _require(is_integer(self.seed, 0, MAX_SEED), "seed", "an integer in [0, 2^63)", self.seed)
        if self.cfg is not None:
            _require(is_number(self.cfg) and self.cfg >= 0, "cfg", "a number >= 0", self.cfg)
        if self.top_k is not None:
            _require(is_integer(self.top_k, 0), "top_k", "0 (off) or a positive integer", self.top_k)
        if self.top_p is not None:
            _require(is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p)
        if self.steps is not None:
            _require(is_integer(self.steps, 1, 1000), "steps", "an integer in [1, 1000]", self.steps)
        if self.refiner_temperature is not None:
            ok = is_number(self.refiner_temperature) and self.refiner_temperature >= 0
            _require(ok, "refiner_temperature", "a number >= 0", self.refiner_temperature)
        if self.fidelity is not None:
            _require(is_number(self.fidelity) and 0 <= self.fidelity <= 1, "fidelity", "in [0, 1]", self.fidelity)
        if self.tile_overlap is not None:
            _require(is_integer(self.tile_overlap, 0), "tile_overlap", "an integer >= 0", self.tile_overlap)
        if self.guided_scales is not None:
            ok = is_integer(self.guided_scales, 0)
            _require(ok, "guided_scales", "a number of scales, an integer >= 0", self.guided_scales)
        if self.stop_at_scale is not None:
            ok = is_integer(self.stop_at_scale, 1)
            _require(ok, "stop_at_scale", "a number of scales, an integer >= 1", self.stop_at_scale)
        ok = is_integer(self.preview_max_side, 1, MAX_PREVIEW_SIDE)
        _require(ok, "preview_max_side", f"an integer in [1, {MAX_PREVIEW_SIDE}]", self.preview_max_side)
        _require(is_integer(self.label, 0), "label", "an integer >= 0", self.label)
        _require(is_number(self.temperature) and self.temperature > 0, "temperature", "a number > 0", self.temperature)
        choices: dict[str, Any] = {
            "refiner": RefinerMode,
            "alpha": AlphaMode,
            "tile": TileMode,
            "previews": PreviewMode,
            "preset": PresetName,
        }
        if self.color_fix is not None:
            choices["color_fix"] = ColorFix
        for name, kind in choices.items():
            _require(getattr(self, name) in get_args(kind), name, f"one of {get_args(kind)}", getattr(self, name))

    def output_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the output for an input of that size."""
        if self.target_size is not None:
            return self.target_size
        scale = self.scale if self.scale is not None else 4.0
        if self.longest_side is not None:
            scale = self.longest_side / max(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def replace(self, /, **changes: Any) -> UpscaleParams:
        """A copy with some fields changed; an unknown name is an error that suggests the nearest."""
        reject_unknown_keys("upscale", changes, {f.name for f in dataclasses.fields(self)})
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UpscaleParams:
        return cls().replace(**values)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Where and how an engine runs, and what it refuses to open.

    device: auto, cpu, cuda or cuda:N. dtype: auto (float32 on a CPU, float16 on CUDA), fp32, fp16 or bf16.
    backend: kernels to use; auto takes the first that can run. attention: of the scales, on its own: auto follows
    backend; cudnn and flash are libraries (docs/architecture.md). batch_size: images, or tiles of one image, a forward
    pass; None: one image, or as many tiles as the model's size lets gain from it.
    numerics: fast, or batch_invariant: an image's pixels are the same bits whatever runs beside it, one image a forward
    pass whatever batch_size says (`engine/invariance.py`).
    quantization: fp8 multiplies in 8-bit floating point where fp8_layers and fp8_steps (of the scale loop) say: all, or
    indices from 0 such as 0,5-9 (docs/quantization.md).
    cuda_graphs: on a GPU, run a batch as one CUDA graph, captured at its size's first use (or by `Engine.warmup`).
    memory_budget: bytes that batches and the decoder's windows keep to, weights included, as far as one tile lets them.
    Where a tile with all weights does not fit, condition encoder, refiner and decoder are loaded for each use, and no
    CUDA graphs are made (docs/presets.md).
    threaded: the queue of `submit` has a thread of its own. max_queued_tiles: of all its requests, running ones too.
    stall_seconds: without a stage for longer, `Engine.health` is bad.
    max_decoder_bytes: memory that decoding a whole latent may take, with tile="published". The limits are checked
    before an image is decoded.
    """

    device: str = "auto"
    dtype: str = "auto"
    backend: str = "auto"
    attention: str = "auto"
    numerics: str = "fast"
    quantization: str = "none"
    fp8_layers: str = "all"
    fp8_steps: str = "all"
    batch_size: int | None = None
    cuda_graphs: bool = True
    memory_budget: int | None = None
    threaded: bool = True
    max_queued_tiles: int = 256
    stall_seconds: int | None = None
    max_input_pixels: int = 64 * 1024 * 1024
    max_output_pixels: int = 256 * 1024 * 1024
    max_input_bytes: int = 256 * 1024 * 1024
    max_side: int = 65_535
    max_decoder_bytes: int = 8 * 1024**3

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.type in INTEGERS:
                ok = is_integer(value, 1) or (value is None and f.type != "int")
                _require(ok, f.name, "a positive integer", value)
            elif f.type == "bool":
                _require(isinstance(value, bool), f.name, "true or false", value)
            else:
                _require(isinstance(value, str) and value != "", f.name, "a name", value)
        _require(self.dtype in DTYPE_NAMES, "dtype", f"one of {', '.join(DTYPE_NAMES)}", self.dtype)
        _require(self.numerics in NUMERICS, "numerics", " or ".join(NUMERICS), self.numerics)
        _require(self.quantization in QUANTIZATIONS, "quantization", " or ".join(QUANTIZATIONS), self.quantization)
        for name in ("fp8_layers", "fp8_steps"):
            parse_indices(name, getattr(self, name))

    def fp8_switches(self, model: ModelConfig) -> Fp8Switches | None:
        """Where a model's products are FP8; None: nowhere. InvalidParamsError for layers that it does not have."""
        if self.quantization == "none":
            return None
        layers = parse_indices("fp8_layers", self.fp8_layers, model.depth)
        return Fp8Switches(layers, parse_indices("fp8_steps", self.fp8_steps, model.num_scales))

    @property
    def read_limits(self) -> ReadLimits:
        from varsr_engine.imaging import ReadLimits  # not at the top: settings import neither numpy nor Pillow

        return ReadLimits(self.max_input_pixels, self.max_input_bytes, self.max_side)

    @property
    def batch_invariant(self) -> bool:
        return self.numerics == "batch_invariant"

    @property
    def images_per_pass(self) -> int:
        return 1 if self.batch_invariant else self.batch_size or 1

    @classmethod
    def resolve(cls, file: str | os.PathLike[str] | None = None, **overrides: Any) -> EngineConfig:
        """Settings by precedence: overrides that are not None > VARSR_<NAME> in the environment > TOML file > defaults.

        The file is `file`, else the one that VARSR_CONFIG names, else none.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        path = file or os.environ.get("VARSR_CONFIG")
        if path:
            try:
                values |= tomllib.loads(Path(path).read_text())
            except OSError as error:
                raise InvalidParamsError(f"config file {str(path)!r} cannot be read: {error.strerror}") from None
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise InvalidParamsError(f"config file {str(path)!r} is not valid TOML: {error}") from None
            reject_unknown_keys(f"config file {str(path)!r}", values, set(fields))
        for name, f in fields.items():
            text = os.environ.get(f"VARSR_{name.upper()}")
            if text:
                if f.type in INTEGERS and not text.isdecimal():
                    raise InvalidParamsError(f"VARSR_{name.upper()} must be a positive integer, got {text!r}")
                if f.type == "bool" and text.lower() not in SWITCHES:
                    raise InvalidParamsError(f"VARSR_{name.upper()} must be true or false, got {text!r}")
                values[name] = int(text) if f.type in INTEGERS else text
                if f.type == "bool":
                    values[name] = SWITCHES[text.lower()]
        reject_unknown_keys("engine config", overrides, set(fields))
        return cls(**(values | {k: v for k, v in overrides.items() if v is not None}))


INTEGERS = ("int", "int | None")  # types of EngineConfig's fields, as written
SWITCHES = {"true": True, "1": True, "false": False, "0": False}
DTYPE_NAMES = ("auto", "fp32", "fp16", "bf16")
NUMERICS = ("fast", "batch_invariant")
