"""The network's shape, as plain data: everything that a checkpoint's tensors do not say by themselves."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from varsr_engine.errors import CheckpointMismatchError, InvalidParamsError

Condition = Literal["prefix", "none"]
ColorFix = Literal["adain", "wavelet", "none"]

VARSR_SCALES = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
C2I_SCALES = (1, 2, 3, 4, 6, 9, 12, 16, 20, 24, 28, 32)


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of a VARSR network (transformer, refiner, autoencoder) and the constants it was trained with.

    The defaults are those of the published super-resolution model (but for the guidance of tiled images); see
    `varsr_d24` and `c2i_d24`.
    Source: "Visual Autoregressive Modeling for Image Super-Resolution", section 4 and appendix.
    """

    depth: int = 24
    embed_dim: int = 1536
    num_heads: int = 24
    mlp_ratio: int = 4
    patch_nums: tuple[int, ...] = VARSR_SCALES
    vocab_size: int = 4096
    latent_channels: int = 32
    num_classes: int = 2
    condition: Condition = "prefix"  # "none" is the class-to-image prior
    cond_channels: tuple[int, ...] = (32, 128, 256, 512, 1536)  # empty when condition is "none"
    vae_channels: int = 160
    vae_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    vae_res_blocks: int = 2
    vae_norm_groups: int = 32
    num_phi: int = 4  # shared residual convolutions of the quantizer
    phi_ratio: float = 0.5
    refiner_width: int = 1024
    refiner_depth: int = 6
    refiner_steps: int = 10
    refiner_train_steps: int = 1000
    refiner_residual_scale: float = 0.6
    rope_grid: int = 32  # a constant of the published weights, also where the last scale is not 32
    rope_base: float = 10000.0
    max_log_scale: float = math.log(100.0)  # clamp of the learned attention scale
    norm_eps: float = 1e-6
    guidance_scale: float = 6.0  # generation defaults, overridable a request
    guidance_scale_tiled: float | None = None  # of images of more than one tile; None: the same
    refiner_temperature: float = 1.0  # factor on the refiner's noise, its start included; 0 is deterministic
    top_k: int = 1
    top_p: float = 0.75
    color_fix: ColorFix = "adain"  # how the output's colours are brought back to the input's
    fidelity: float = 0.0  # share of the resized input in the output: 0 is the network's own result

    def __post_init__(self) -> None:
        for name in ("patch_nums", "cond_channels", "vae_multipliers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        positive = [f.name for f in dataclasses.fields(self) if f.type == "int" and f.name != "top_k"]
        for name in positive:
            value = getattr(self, name)
            if not _is_positive_integer(value):
                raise InvalidParamsError(f"config: {name} must be a positive integer, got {value!r}")
        for name in ("patch_nums", "cond_channels", "vae_multipliers"):
            sides = getattr(self, name)
            self._check(all(_is_positive_integer(n) for n in sides), name, "positive integers")
        for name in ("rope_base", "max_log_scale", "norm_eps", "refiner_residual_scale"):
            self._check(_is_number(getattr(self, name)) and getattr(self, name) > 0, name, "a number > 0")
        for name in ("guidance_scale", "refiner_temperature"):
            self._check(_is_number(getattr(self, name)) and getattr(self, name) >= 0, name, "a number >= 0")
        tiled = self.guidance_scale_tiled
        self._check(
            tiled is None or (_is_number(tiled) and tiled >= 0), "guidance_scale_tiled", "a number >= 0 or None"
        )
        self._check(_is_number(self.phi_ratio) and 0 <= self.phi_ratio <= 1, "phi_ratio", "in [0, 1]")
        self._check(
            _is_positive_integer(self.top_k) or (type(self.top_k) is int and self.top_k == 0),
            "top_k",
            "0 (off) or a positive integer",
        )
        self._check(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", "in (0, 1]")
        self._check(self.embed_dim % self.num_heads == 0, "num_heads", f"a divisor of embed_dim = {self.embed_dim}")
        self._check(
            self.head_dim % 4 == 0, "num_heads", "such that embed_dim / num_heads is a multiple of 4 (2-D RoPE)"
        )
        increasing = all(a < b for a, b in zip(self.patch_nums, self.patch_nums[1:], strict=False))
        self._check(
            len(self.patch_nums) >= 2 and self.patch_nums[0] == 1 and increasing,
            "patch_nums",
            "at least two increasing sides that start with 1",
        )
        self._check(_is_number(self.fidelity) and 0 <= self.fidelity <= 1, "fidelity", "in [0, 1]")
        self._check(self.color_fix in get_args(ColorFix), "color_fix", f"one of {get_args(ColorFix)}")
        self._check(self.condition in ("prefix", "none"), "condition", "'prefix' or 'none'")
        if self.condition == "prefix":
            self._check(
                len(self.cond_channels) == len(self.vae_multipliers),
                "cond_channels",
                f"{len(self.vae_multipliers)} widths, so that both encoders downsample by {self.downsample}",
            )
        else:
            self._check(not self.cond_channels, "cond_channels", "empty where condition is 'none'")
        widths = {self.vae_channels * m for m in self.vae_multipliers}
        self._check(
            all(w % self.vae_norm_groups == 0 for w in widths),
            "vae_norm_groups",
            f"a divisor of every autoencoder width {sorted(widths)}",
        )
        self._check(self.refiner_steps <= self.refiner_train_steps, "refiner_steps", "at most refiner_train_steps")

    def _check(self, ok: bool, name: str, expected: str) -> None:
        if not ok:
            raise InvalidParamsError(f"config: {name} must be {expected}, got {getattr(self, name)!r}")

    # --- presets -----------------------------------------------------------------------------------------

    @classmethod
    def varsr_d24(cls) -> ModelConfig:
        """The published super-resolution model: 24 layers, 1.1 B parameters, 512x512 tiles."""
        return cls(guidance_scale_tiled=7.0)

    @classmethod
    def c2i_d24(cls) -> ModelConfig:
        """The published class-to-image prior: no condition image, its own scales, 3830 classes, sampling."""
        return cls(
            patch_nums=C2I_SCALES,
            num_classes=3830,
            condition="none",
            cond_channels=(),
            guidance_scale=4.0,
            top_k=20,
        )

    # --- derived -----------------------------------------------------------------------------------------

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def num_scales(self) -> int:
        return len(self.patch_nums)

    @property
    def latent_side(self) -> int:
        """p: side of the last scale's token map, which is the latent's side."""
        return self.patch_nums[-1]

    @property
    def downsample(self) -> int:
        """Pixels of the output a latent cell covers, along one side."""
        return 2 ** (len(self.vae_multipliers) - 1)

    @property
    def image_side(self) -> int:
        return self.latent_side * self.downsample

    @property
    def has_prefix(self) -> bool:
        return self.condition == "prefix"

    @property
    def first_length(self) -> int:
        """Tokens of step 0: the prefix (if any) and the class token."""
        return (self.latent_side**2 if self.has_prefix else 0) + 1

    @property
    def step_lengths(self) -> tuple[int, ...]:
        """Tokens a sequence runs through the transformer at each step."""
        return (self.first_length, *(p * p for p in self.patch_nums[1:]))

    @property
    def class_rows(self) -> int:
        """Rows of the class embedding. The prior has one more than it has classes: the unconditional one."""
        return self.num_classes + (0 if self.has_prefix else 1)

    @property
    def uncond_label(self) -> int:
        return self.class_rows - 1

    def guidance_ratio(self, step: int) -> float:
        """Factor on the guidance scale at a step: k/(K-1), for the prior (k+1)/(K-1)."""
        return (step + (0 if self.has_prefix else 1)) / (self.num_scales - 1)

    def phi_index(self, step: int) -> int:
        """Which shared residual convolution follows a scale: the nearest of n evenly spaced ticks, the first on ties.

        The published scales meet ties (steps 2 and 7 of ten) that float64 rounding decides: the ticks are computed as
        start + i * step, which is how the weights were trained. Any other order of operations picks other weights.
        """
        n, position = self.num_phi, step / (self.num_scales - 1)
        start, stop = 1 / 3 / n, 1 - 1 / 3 / n
        stride = (stop - start) / max(n - 1, 1)
        ticks = [start + i * stride for i in range(n)]
        return min(range(n), key=lambda i: abs(ticks[i] - position))

    # --- input and output --------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def to_json(self) -> str:
        return json.dumps({"model_type": "varsr", **self.to_dict()}, indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`. An unknown key is an error that names the nearest known one."""
        values = {k: v for k, v in values.items() if k != "model_type"}
        reject_unknown_keys("config.json", values, {f.name for f in dataclasses.fields(cls)})
        try:
            return cls(**values)
        except TypeError as error:
            raise InvalidParamsError(f"config.json: a value has the wrong type: {error}") from None

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], **known: Any) -> ModelConfig:
        """Deduce the config from tensor shapes, named `transformer.*` and `vae.*`; `known` values win.

        Shapes do not tell the sides of the scales: those come from `known`, or from the published model with
        the same number of scales and the same last side.
        """

        def shape(name: str) -> tuple[int, ...]:
            if name not in shapes:
                raise CheckpointMismatchError(
                    f"checkpoint: tensor {name!r} is missing, so the model's shape is unknown"
                )
            return tuple(shapes[name])

        def count(pattern: str) -> int:
            n = 0
            while pattern.format(n) in shapes:
                n += 1
            return n

        t, v = "transformer.", "vae."
        has_prefix = f"{t}con_embedding.conv_in.weight" in shapes
        num_scales, embed_dim = shape(f"{t}lvl_embed.weight")
        first_length = shape(f"{t}pos_start")[1]
        heads = shape(f"{t}blocks.0.attn.scale_mul_1H11")[1]
        class_rows = shape(f"{t}class_emb.weight")[0]
        levels = count(v + "decoder.up.{}.block.0.norm1.weight")
        vae_channels = shape(f"{v}decoder.norm_out.weight")[0]
        found: dict[str, Any] = {
            "depth": count(t + "blocks.{}.attn.mat_qkv.weight"),
            "embed_dim": embed_dim,
            "num_heads": heads,
            "mlp_ratio": shape(f"{t}blocks.0.ffn.fc1.weight")[0] // embed_dim,
            "vocab_size": shape(f"{v}quantize.embedding.weight")[0],
            "latent_channels": shape(f"{v}quantize.embedding.weight")[1],
            "num_classes": class_rows - (0 if has_prefix else 1),
            "condition": "prefix" if has_prefix else "none",
            "cond_channels": (),
            "vae_channels": vae_channels,
            "vae_multipliers": tuple(
                shape(f"{v}decoder.up.{i}.block.0.conv1.weight")[0] // vae_channels for i in range(levels)
            ),
            "vae_res_blocks": count(v + "decoder.up.0.block.{}.norm1.weight") - 1,
            "num_phi": count(v + "quantize.quant_resi.qresi_ls.{}.weight"),
            "refiner_width": shape(f"{t}diffloss.net.input_proj.weight")[0],
            "refiner_depth": count(t + "diffloss.net.res_blocks.{}.in_ln.weight"),
        }
        if has_prefix:
            pairs = count(t + "con_embedding.blocks.{}.weight") // 2
            found["cond_channels"] = (
                shape(f"{t}con_embedding.conv_in.weight")[0],
                *(shape(f"{t}con_embedding.blocks.{2 * i + 1}.weight")[0] for i in range(pairs)),
            )
        else:
            found |= {"guidance_scale": 4.0, "top_k": 20}
        for scales in (VARSR_SCALES, C2I_SCALES):
            side = math.isqrt(first_length - 1) if has_prefix else scales[-1]
            if len(scales) == num_scales and scales[-1] == side:
                found["patch_nums"] = scales
                if has_prefix:
                    found["guidance_scale_tiled"] = 7.0  # the published model's
        if "patch_nums" not in found and "patch_nums" not in known:
            raise CheckpointMismatchError(
                f"checkpoint: {num_scales} scales and {first_length} first tokens match no published model: "
                "give the sides of the scales as patch_nums in a config.json beside the weights"
            )
        return cls(**(found | known))


def reject_unknown_keys(what: str, given: Mapping[str, Any], known: set[str]) -> None:
    """Raise InvalidParamsError for the first key of `given` that is not in `known`, naming the nearest."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise InvalidParamsError(f"{what}: unknown key {key!r}; {hint}")
