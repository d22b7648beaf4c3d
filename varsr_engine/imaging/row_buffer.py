"""Rows of an image that comes in bands: kept as long as something still needs them."""

from __future__ import annotations

import torch


class RowBuffer:
    """The last rows of an image (3, H, W), of which the first have been forgotten."""

    def __init__(self) -> None:
        self._bands: list[torch.Tensor] = []
        self.start = self.end = 0  # rows kept

    def append(self, band: torch.Tensor) -> None:
        """The next rows (3, h, W)."""
        self._bands.append(band)
        self.end += band.shape[1]

    def take(self, top: int, bottom: int) -> torch.Tensor:
        """Rows top to bottom, (3, bottom - top, W)."""
        assert self.start <= top <= bottom <= self.end, (self.start, top, bottom, self.end)
        parts, first = [], self.start
        for band in self._bands:
            last = first + band.shape[1]
            if first < bottom and top < last:
                parts.append(band[:, max(0, top - first) : bottom - first])
            first = last
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def forget(self, top: int) -> None:
        """Let go of bands that lie wholly above a row."""
        while self._bands and self.start + self._bands[0].shape[1] <= top:
            self.start += self._bands.pop(0).shape[1]
