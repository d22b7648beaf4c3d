"""What the trainer needs to know of a stage of training."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

Batch = dict[str, torch.Tensor]


class Stage(nn.Module, ABC):
    """A model with its losses. Parameters that require a gradient are what is trained and saved."""

    @abstractmethod
    def forward(self, batch: Batch, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a batch, and numbers to log by name."""

    def after_step(self, step: int) -> None:
        """Called when the weights have been updated."""

    @abstractmethod
    def preview(self, batch: Batch) -> list[torch.Tensor]:
        """Columns of a before/after picture, each (N, 3, S, S) in [-1, 1]."""

    def report(self) -> dict[str, object]:
        """Numbers for the log that are too long for the progress bar."""
        return {}
