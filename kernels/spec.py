"""What every op declares beside its reference: the cost model's unit, and argument checks with one wording."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Cost:
    """Arithmetic (2 a multiply-add, matrix products and convolutions only) and the least bytes moved."""

    flops: int
    bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: int) -> Cost:
        return Cost(self.flops * times, self.bytes * times)


def check_shape(op: str, name: str, tensor: torch.Tensor, symbols: str, expected: tuple[int, ...]) -> None:
    """Raise ValueError unless `tensor` has the expected shape: `adaln: scale must be (B, C) = (2, 8), got (2, 7)`."""
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{op}: {name} must be {symbols} = {expected}, got {tuple(tensor.shape)}")


def check_ndim(op: str, name: str, tensor: torch.Tensor, symbols: str, ndim: int) -> None:
    """Raise ValueError unless `tensor` has `ndim` dimensions."""
    if tensor.ndim != ndim:
        raise ValueError(f"{op}: {name} must be {symbols}, got shape {tuple(tensor.shape)}")


def check_dtype(op: str, name: str, tensor: torch.Tensor, expected: torch.dtype, like: str) -> None:
    """Raise TypeError unless `tensor` has the dtype that the argument called `like` has."""
    if tensor.dtype != expected:
        raise TypeError(f"{op}: {name} is {tensor.dtype}, {like} is {expected}")
