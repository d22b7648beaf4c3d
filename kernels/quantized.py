"""FP8 operands of products: one-byte values (e4m3) and the float32 scales that turn them back into numbers.

A scale is the largest magnitude of what shares it over 448, e4m3's largest value, so that nothing overflows and the
largest value is exact. A weight has a scale a channel. Rows have one each where their producer sees whole rows (adaln),
else one each 128 columns (mlp, whose programs see tiles); products add up at most as many terms in the tensor cores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from varsr_engine.kernels.panels import as_matrix
from varsr_engine.kernels.spec import check_shape

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
LEAST = LARGEST * 2.0**-126  # scales stay normal numbers: what is all zeros has one that it can be divided by
GROUP = 128  # columns that share a scale where a row has several


class QuantizedWeight(NamedTuple):
    values: torch.Tensor  # (N, K) e4m3
    scale: torch.Tensor  # (N,) float32


class QuantizedRows(NamedTuple):
    values: torch.Tensor  # (B, L, K) e4m3
    scale: torch.Tensor  # (B, L, G) float32, G = 1 or `groups(K)`

    @classmethod
    def empty(cls, B: int, L: int, K: int, G: int, device: torch.device) -> QuantizedRows:
        values = torch.empty(B, L, K, device=device, dtype=E4M3)
        return cls(values, torch.empty(B, L, G, device=device, dtype=torch.float32))


Rows = torch.Tensor | QuantizedRows
Weight = torch.Tensor | QuantizedWeight


def groups(K: int) -> int:
    """Scales of a row of K columns whose producer sees `GROUP` of them."""
    return -(-K // GROUP)


def scale_of(x: torch.Tensor) -> torch.Tensor:
    """The scale of what the last dimension holds. NaN gives NaN, infinity infinity: neither becomes a number."""
    return x.abs().amax(dim=-1).clamp_min(LEAST) / LARGEST


def quantize_weight(weight: torch.Tensor) -> QuantizedWeight:
    """A float32 matrix (N, K) as e4m3 with a scale a row."""
    scale = scale_of(weight)
    return QuantizedWeight((weight / scale[:, None]).to(E4M3), scale)


def quantize_rows(x: torch.Tensor, out: QuantizedRows) -> QuantizedRows:
    """x (B, L, K) into `out`: e4m3 with as many scales a row as it has. Into float64, for tests, without rounding."""
    G = out.scale.shape[-1]
    parts = [x] if G == 1 else x.split(GROUP, dim=-1)
    out.scale.copy_(torch.stack([scale_of(part) for part in parts], dim=-1))
    out.values.copy_(x / _per_column(out.scale, x.shape[-1]).to(x.dtype))
    return out


def dequantize(x: QuantizedRows | QuantizedWeight) -> torch.Tensor:
    """values * scale, in the scales' dtype."""
    if isinstance(x, QuantizedWeight):
        return x.values.to(x.scale.dtype) * x.scale[:, None]
    return x.values.to(x.scale.dtype) * _per_column(x.scale, x.values.shape[-1])


def _per_column(scale: torch.Tensor, K: int) -> torch.Tensor:
    """A scale a column from scales (..., G) of K columns; one alone is left to broadcasting."""
    return scale if scale.shape[-1] == 1 else scale.repeat_interleave(GROUP, dim=-1)[..., :K]


def values_of(x: Rows | Weight) -> torch.Tensor:
    """The values of quantized operands, others as they are: for shapes and devices."""
    return x if isinstance(x, torch.Tensor) else x.values


def plain_operands(x: Rows, weight: Weight, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a reference multiplies and adds: quantized operands as the numbers that they stand for, in float32."""
    if isinstance(x, QuantizedRows) and isinstance(weight, QuantizedWeight):
        return dequantize(x), dequantize(weight), bias.to(x.scale.dtype)
    return values_of(x), as_matrix(values_of(weight)), bias


def check_rows(op: str, name: str, x: QuantizedRows, symbols: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the rows have this shape, and one scale or one each 128 columns."""
    check_shape(op, name, x.values, symbols, shape)
    B, L, K = shape
    if tuple(x.scale.shape) not in ((B, L, 1), (B, L, groups(K))):
        raise ValueError(
            f"{op}: {name}.scale must be (B, L, 1 or ceil({symbols[-2]} / {GROUP})) = {(B, L, f'1 or {groups(K)}')}, "
            f"got {tuple(x.scale.shape)}"
        )


def check_operands(op: str, x: Rows, weight: Weight) -> bool:
    """Whether both operands of a product are quantized. Raises TypeError if one is, ValueError for wrong scales."""
    if isinstance(x, QuantizedRows) != isinstance(weight, QuantizedWeight):
        said = {True: "quantized", False: "not"}
        both = said[isinstance(x, QuantizedRows)], said[isinstance(weight, QuantizedWeight)]
        raise TypeError(f"{op}: x is {both[0]}, weight is {both[1]}; both or neither must be")
    if not (isinstance(x, QuantizedRows) and isinstance(weight, QuantizedWeight)):
        return False
    B, L, K = x.values.shape
    check_rows(op, "x", x, "(B, L, K)", (B, L, K))
    check_shape(op, "weight.scale", weight.scale, "(N,)", (weight.values.shape[0],))
    return True


def unquantized(why_not: Callable[..., str | None]) -> Callable[..., str | None]:
    """why_not of a backend that takes no quantized operands."""

    @functools.wraps(why_not)
    def asked(*args: Any, **kwargs: Any) -> str | None:
        if any(isinstance(value, (QuantizedRows, QuantizedWeight)) for value in (*args, *kwargs.values())):
            return "the operands are quantized (FP8)"
        return why_not(*args, **kwargs)

    return asked
