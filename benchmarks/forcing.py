"""An engine whose tokens are given, scale by scale: to compare two engines' logits on the same inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from varsr_engine.engine.engine import Engine


@contextlib.contextmanager
def forced_tokens(engine: Engine, tokens: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Within this context the scale loop goes on with these tokens (B, p_k^2); gives those that it would choose."""
    loop, chosen = engine._pipeline._scale_loop, []
    sample = loop._sample

    def forced(*args: Any) -> torch.Tensor:
        step = args[4]
        if step == 0:
            chosen.clear()
        chosen.append(sample(*args))
        return tokens[step]

    loop._sample = forced  # type: ignore[method-assign]
    try:
        yield chosen
    finally:
        del loop._sample  # the class's own again
