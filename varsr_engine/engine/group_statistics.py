"""GroupNorm statistics that all windows of a picture share, so that no window shows where it ends.

A network of convolutions gives neighbouring windows the same pixels where they overlap; its normalisations do not, for
each window would be normalised by its own contents. Here every window is run twice: first to learn the moments of each
normalisation over the whole picture, then with those. The first run normalises each window by itself: its moments are
those of the whole for the first normalisation, and near them for the later ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from varsr_engine.kernels.groupnorm_silu import groupnorm_silu
from varsr_engine.model.autoencoder import Norm


class Moments:
    """Of each normalisation of a network, in the order in which it runs them: mean and mean square of its groups."""

    def __init__(self) -> None:
        self._sums: list[torch.Tensor] = []  # (2, groups) float64, over windows
        self._windows = 0

    def add(self, index: int, x: torch.Tensor, groups: int) -> None:
        """What normalisation `index` gets from some windows, x (B, C, H, W); each window counts the same."""
        variance, mean = torch.var_mean(x.float().unflatten(1, (groups, -1)), dim=(2, 3, 4), correction=0)
        mean, variance = mean.double(), variance.double()
        moments = torch.stack((mean, variance + mean.square())).sum(1)
        if index == len(self._sums):
            self._sums.append(moments)
        else:
            self._sums[index] += moments
        if index == 0:
            self._windows += x.shape[0]

    def join(self, other: Moments) -> None:
        """Add windows that were learned apart: as `add` would have, in their order."""
        for index, moments in enumerate(other._sums):
            if index == len(self._sums):
                self._sums.append(moments)
            else:
                self._sums[index] += moments
        self._windows += other._windows

    def of(self, index: int) -> torch.Tensor:
        """(2, groups) over all windows."""
        return self._sums[index] / self._windows


class GroupStatistics:
    """The normalisations of one network: each by its own input, unless within `learning` or `shared`.

    Neither is held open while the network's caller waits for something else: see `decode_in_bands`.
    """

    def __init__(self) -> None:
        self._learning: Moments | None = None
        self._shared: Moments | None = None
        self._next = 0

    def begin(self) -> None:
        """A run of the network starts."""
        self._next = 0

    @contextlib.contextmanager
    def learning(self) -> Iterator[Moments]:
        """Within this context runs add the moments of what they normalise to the result."""
        self._learning = Moments()
        try:
            yield self._learning
        finally:
            self._learning = None

    @contextlib.contextmanager
    def shared(self, moments: Moments) -> Iterator[None]:
        """Within this context runs normalise by these moments."""
        self._shared = moments
        try:
            yield
        finally:
            self._shared = None

    def normalise(
        self, norm: Norm, x: torch.Tensor, out: torch.Tensor | None = None, silu: bool = True
    ) -> torch.Tensor:
        """silu(GroupNorm(x)), or the norm alone, of x (B, C, H, W); into `out` if given, which may be x."""
        index, self._next = self._next, self._next + 1
        if self._shared is not None:
            return _by_moments(norm, x, self._shared.of(index), silu, out)
        if self._learning is not None:
            self._learning.add(index, x, norm.num_groups)
        return groupnorm_silu(x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu=silu, out=out)


def _by_moments(
    norm: Norm, x: torch.Tensor, moments: torch.Tensor, silu: bool, out: torch.Tensor | None
) -> torch.Tensor:
    """The normalisation of x by given moments (2, groups): a factor and a shift a channel."""
    mean, square = moments.repeat_interleave(x.shape[1] // norm.num_groups, dim=1)
    inverse = ((square - mean.square()).clamp_min(0) + norm.eps).rsqrt()
    factor = norm.weight.double() * inverse
    shift = norm.bias.double() - factor * mean
    factor, shift = (t.to(x.dtype)[None, :, None, None] for t in (factor, shift))
    y = torch.addcmul(shift, x, factor) if out is None else torch.addcmul(shift, x, factor, out=out)
    return F.silu(y, inplace=True) if silu else y
