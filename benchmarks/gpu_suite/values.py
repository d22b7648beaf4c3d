"""Real arguments for a recorded call: its shapes and strides, with values like those that the engine has there."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu_suite.calls import Arguments, Call, parameters
from varsr_engine.engine.weights import resampling_matrix
from varsr_engine.kernels.conv3x3 import prepare_conv3x3
from varsr_engine.kernels.linear import prepare_linear
from varsr_engine.kernels.quantized import QuantizedRows, QuantizedWeight, quantize_rows, quantize_weight
from varsr_engine.kernels.upsample_conv import phase_weights

Tensor = torch.Tensor


class Values:
    """Makes tensors laid out like recorded ones. One that was recorded twice, as in `out=x`, is made once."""

    def __init__(self, name: str, device: torch.device, index: int = 0) -> None:
        self.device = device
        self._generator = torch.Generator(device).manual_seed(zlib.crc32(f"{index} {name}".encode()))
        self._made: dict[int, tuple[Tensor, Tensor]] = {}  # by the recorded one's id, which is kept alive beside it

    def place(self, like: Tensor) -> Tensor:
        """Memory in the recorded layout."""
        made = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=self.device)
        self._made[id(like)] = like, made
        return made

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self.device)

    def normal(self, like: Tensor, std: float = 1.0, mean: float = 0.0) -> Tensor:
        return self.place(like).copy_(self.noise(*like.shape) * std + mean)

    def uniform(self, like: Tensor, low: float, high: float) -> Tensor:
        drawn = torch.rand(like.shape, generator=self._generator, device=self.device)
        return self.place(like).copy_(drawn * (high - low) + low)

    def integers(self, like: Tensor, low: int, high: int) -> Tensor:
        drawn = torch.randint(low, high, tuple(like.shape), generator=self._generator, device=self.device)
        return self.place(like).copy_(drawn)

    def weight(self, like: Tensor) -> Tensor:
        """A matrix or kernel that keeps the variance of what it multiplies."""
        return self.normal(like, 1 / math.sqrt(math.prod(like.shape[1:])))

    def matrix(self, like: Tensor | QuantizedWeight, parts: int = 1) -> Tensor | QuantizedWeight:
        """A weight in the form that this machine multiplies with."""
        if isinstance(like, QuantizedWeight):
            N, K = like.values.shape
            return quantize_weight(self.noise(N, K) / math.sqrt(K))
        return prepare_linear(self.weight(like), parts)

    def rows(self, like: Tensor | QuantizedRows, std: float = 1.0) -> Tensor | QuantizedRows:
        """What a product takes: activations, quantized where they were recorded so."""
        if isinstance(like, QuantizedRows):
            made = QuantizedRows(self.place(like.values), self.place(like.scale))
            return quantize_rows(self.noise(*like.values.shape) * std, made)
        return self.normal(like, std)

    def unit_rows(self, like: Tensor, length: Tensor | float = 1.0) -> Tensor:
        """Queries or keys (B, H, L, D) of one length, or of one a head."""
        factor = length[:, None, None] if isinstance(length, Tensor) else length
        return self.place(like).copy_(F.normalize(self.noise(*like.shape), dim=-1) * factor)

    def poison(self, like: Any) -> Any:
        """Where a result goes: what is there already, else NaN."""
        if isinstance(like, QuantizedRows):
            return QuantizedRows(*map(self.poison, like))
        if not isinstance(like, Tensor):
            return like
        if id(like) in self._made:
            return self._made[id(like)][1]
        made = self.place(like)
        return made.copy_(torch.full(like.shape, math.nan, device=self.device))

    def positions(self, like: Tensor) -> Tensor:
        """Cells of a square map: row << 16 | column."""
        side = math.isqrt(like.shape[-1])
        cells = torch.arange(like.shape[-1], device=self.device)
        return self.place(like).copy_((cells // side << 16 | cells % side).expand(like.shape))

    def of_name(self, name: str, like: Any) -> Any:
        """What an argument of this name usually is."""
        if name == "out":
            return self.poison(like)
        if isinstance(like, tuple) and not isinstance(like, (QuantizedRows, QuantizedWeight)):
            parts: dict[str, Any] = getattr(like, "_asdict", dict)()  # of a named tuple; others hold no tensors
            return like._replace(**{n: self.of_name(n, part) for n, part in parts.items()}) if parts else like  # type: ignore[attr-defined]
        if not isinstance(like, (Tensor, QuantizedRows, QuantizedWeight)):
            return like
        if name in WHOLE_NUMBERS:
            return WHOLE_NUMBERS[name](self, like)  # type: ignore[arg-type]
        if name.endswith("bias") or name == "b":
            return self.normal(like, 0.1)  # type: ignore[arg-type]
        if name.endswith("weight"):
            return self.matrix(like)  # type: ignore[arg-type]
        if name in ("ratio", "std"):
            return self.uniform(like, 0.5, 5.0)  # type: ignore[arg-type]
        return self.rows(like, SPREADS.get(name, 1.0))  # type: ignore[arg-type]


WHOLE_NUMBERS: dict[str, Callable[[Values, Tensor], Tensor]] = {
    "seeds": lambda v, like: v.integers(like, 0, 2**62),
    "positions": lambda v, like: v.positions(like),
}
SPREADS = {"scale": 0.5, "gate": 0.4, "codebook": 0.6}  # standard deviations, where they are not 1

Named = dict[str, Any]
Special = Callable[[Values, Named], Named]  # the arguments of a call that names do not tell


def qkv_norm_rope_cache(v: Values, a: Named) -> Named:
    angles = torch.rand(a["cos"].shape, device=v.device, generator=v._generator) * 32
    rope = {"cos": v.place(a["cos"]).copy_(angles.cos()), "sin": v.place(a["sin"]).copy_(angles.sin())}
    return {**rope, "weight": v.matrix(a["weight"], 3), "q_scale": v.uniform(a["q_scale"], 1.0, 9.0)}


def scale_attention(v: Values, a: Named) -> Named:
    """With a bound queries are as long as it says, without one up to 20 in some heads."""
    if a["bound"] is None:
        bound, lengths = None, torch.linspace(1.0, 20.0, a["q"].shape[1], device=v.device)
    else:
        bound = v.uniform(a["bound"], 2.0, 9.0)
        lengths = bound * (1 - 2.0**-10)  # rounding must not lift a score above the promise
    return {"q": v.unit_rows(a["q"], lengths), "k": v.unit_rows(a["k"]), "bound": bound}


def block_causal_attention(v: Values, a: Named) -> Named:
    return {"q": v.unit_rows(a["q"], 4.0), "k": v.unit_rows(a["k"])}


def guided_sample(v: Values, a: Named) -> Named:
    s = a["sampling"]
    if s is None:
        return {}
    drawn = {
        "top_k": v.integers(s.top_k, 1, 200),
        "top_p": v.uniform(s.top_p, 0.5, 1.0),
        "temperature": v.uniform(s.temperature, 0.7, 1.3),
        "seeds": v.of_name("seeds", s.seeds),
        "positions": v.of_name("positions", s.positions),
    }
    return {"sampling": s._replace(**drawn)}


def scale_handoff(v: Values, a: Named) -> Named:
    c, (p, side), following = a["constants"], a["constants"].upsample.shape, a["constants"].downsample.shape[0]
    constants = c._replace(
        upsample=v.place(c.upsample).copy_(resampling_matrix("bicubic", side, p)),
        phi_weight=v.normal(c.phi_weight, 0.1),
        phi_bias=v.normal(c.phi_bias, 0.1),
        downsample=v.place(c.downsample).copy_(resampling_matrix("area", p, following)),
        embed_weight=v.weight(c.embed_weight),
        embed_bias=v.normal(c.embed_bias, 0.1),
    )
    return {"tokens": v.integers(a["tokens"], 0, a["codebook"].shape[0]), "constants": constants}


def refiner_block(v: Values, a: Named) -> Named:
    w = a["weights"]
    weights = w._replace(
        norm_weight=v.normal(w.norm_weight, 0.1, 1.0),
        norm_bias=v.normal(w.norm_bias, 0.1),
        in_weight=v.matrix(w.in_weight),
        in_bias=v.normal(w.in_bias, 0.1),
        out_weight=v.matrix(w.out_weight),
        out_bias=v.normal(w.out_bias, 0.1),
    )
    return {"weights": weights}


def refiner_update(v: Values, a: Named) -> Named:
    return {"weight": v.weight(a["weight"])}  # a matrix everywhere: of too few rows for panels to matter


def groupnorm_silu(v: Values, a: Named) -> Named:
    return {"x": v.normal(a["x"], 2.0, 0.5), "weight": v.normal(a["weight"], 0.1, 1.0)}


def upsample_conv(v: Values, a: Named) -> Named:
    """Weights are multiples of 2^-10: the folded taps round little, so that both ways of computing agree."""
    weight = v.weight(a["weights"].weight).mul_(1024).round_().div_(1024)
    bias = v.normal(a["bias"], 0.1)
    return {"phases": phase_weights(weight), "bias": bias, "weights": prepare_conv3x3(weight, bias)}


def conv3x3(v: Values, a: Named) -> Named:
    return {"weights": prepare_conv3x3(v.weight(a["weights"].weight), v.normal(a["weights"].bias, 0.1))}


SPECIAL: dict[str, Special] = {
    f.__name__: f
    for f in (
        qkv_norm_rope_cache,
        scale_attention,
        block_causal_attention,
        guided_sample,
        scale_handoff,
        refiner_block,
        refiner_update,
        groupnorm_silu,
        upsample_conv,
        conv3x3,
    )
}


def real_arguments(call: Call, device: torch.device, index: int = 0) -> Arguments:
    """The call's arguments with values; the same for the same call and index, on the same kind of device."""
    values, recorded = Values(call.name, device, index), call.named
    special = SPECIAL[call.op](values, recorded) if call.op in SPECIAL else {}
    made = {name: special[name] if name in special else values.of_name(name, recorded[name]) for name in recorded}
    return tuple(made[name] for name in parameters(call.op)[: len(call.args)])


def bytes_of(value: Any) -> int:
    """Memory of all tensors in nested tuples; one that appears twice counts once."""
    seen: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            seen[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, tuple):
            for item in value:
                visit(item)

    visit(value)
    return sum(seen.values())
