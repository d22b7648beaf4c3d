"""Weights in the form in which a product is fastest: a matrix, or its panels.

A weight is a matrix (N, K). Its panels (N / P, K, P) hold P rows side by side, `panels[n, k, i] = matrix[P n + i, k]`:
what the CPU kernel of `linear` streams. `prepare_linear` makes them where that kernel runs; ops take either form.
"""

from __future__ import annotations

import torch

from varsr_engine.kernels.spec import check_ndim


def is_packed(weight: torch.Tensor) -> bool:
    return weight.ndim == 3


def matrix_shape(weight: torch.Tensor) -> tuple[int, int]:
    """(N, K) of a weight in either form."""
    if is_packed(weight):
        return weight.shape[0] * weight.shape[2], weight.shape[1]
    return weight.shape[0], weight.shape[1]


def as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """The matrix (N, K): the weight itself, or a copy of its panels."""
    return weight.mT.flatten(0, 1) if is_packed(weight) else weight


def take_rows(weight: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Rows start to stop - 1 of the matrix, in the weight's form; of panels, multiples of P."""
    if not is_packed(weight):
        return weight[start:stop]
    P = weight.shape[2]
    assert start % P == 0 and stop % P == 0, f"rows {start} to {stop} do not begin and end with a panel of {P}"
    return weight[start // P : stop // P]


def check_weight(
    op: str, name: str, weight: torch.Tensor, symbols: str, expected: tuple[int | None, int | None]
) -> tuple[int, int]:
    """The weight's (N, K). Raises ValueError unless it has the expected shape (None: any), as a matrix or in panels."""
    if not is_packed(weight):
        check_ndim(op, name, weight, symbols, 2)
    N, K = matrix_shape(weight)
    wanted = (N if expected[0] is None else expected[0], K if expected[1] is None else expected[1])
    if wanted != (N, K):
        raise ValueError(f"{op}: {name} must be {symbols} = {wanted}, got {(N, K)}")
    return N, K
