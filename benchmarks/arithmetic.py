"""What an image takes, before anything runs: arithmetic, least traffic and calls of every op in every stage.

The engine's own from its ops' cost models, of the calls that it makes; the published way's by counting the products
and convolutions of `published_style` on tensors without values. Both know nothing of a machine.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_suite.calls import record_image
from benchmarks.gpu_suite.model import NOT_RUN
from benchmarks.published_style import PublishedStyle
from tests.aot.published import FakeCheckpoint
from varsr_engine.config import ModelConfig
from varsr_engine.engine.cost import stage_costs
from varsr_engine.kernels.spec import Cost

META = torch.device("meta")


@dataclass(frozen=True)
class OpCost:
    """All calls of an op in a stage of one forward pass."""

    stage: str
    op: str
    calls: int
    cost: Cost

    def floor(self, flop_per_s: float, bytes_per_s: float) -> float:
        """Seconds below which no machine of these ceilings comes: arithmetic and traffic overlap wholly."""
        return max(self.cost.flops / flop_per_s, self.cost.bytes / bytes_per_s)


def op_costs(config: ModelConfig, batch: int = 1, dtype: torch.dtype = torch.float16) -> list[OpCost]:
    """By stage in the order of an image, then by op in the order of their first call.

    Last in a stage, under the name "torch": the arithmetic of torch's own functions there: the decoder's attention.
    """
    found: dict[tuple[str, str], OpCost] = {}
    for call in record_image(config, batch, dtype):
        key = call.stage, call.op
        earlier = found.get(key, OpCost(*key, 0, Cost(0, 0)))
        found[key] = OpCost(*key, earlier.calls + call.count, earlier.cost + call.cost * call.count)
    costs = []
    for stage, whole in stage_costs(config, batch, dtype.itemsize).items():
        own = [cost for cost in found.values() if cost.stage == stage]
        rest = whole.flops - sum(cost.cost.flops for cost in own)
        costs += [*own, OpCost(stage, "torch", 0, Cost(rest, 0))] if rest > 0 else own
    return costs


def published_flops(config: ModelConfig, batch: int = 1) -> int:
    """Of `batch` guided images the published way: products and convolutions, 2 a multiply-add."""
    checkpoint = FakeCheckpoint(config, torch.float32)
    read = checkpoint.open()
    network = PublishedStyle({name: read(name) for name in checkpoint.shapes if not name.startswith(NOT_RUN)}, config)
    side, steps = config.image_side, config.refiner_steps + 1
    lr = torch.empty(batch, 3, side, side, device=META)
    noise = torch.empty(steps, batch, config.latent_side**2, config.latent_channels, device=META)
    generator = torch.Generator()
    with (  # neither exists for tensors without values
        mock.patch.object(torch, "Generator", lambda device: generator),
        mock.patch.object(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext()),
        FlopCounterMode(display=False) as counter,
    ):
        network.generate(lr, [0] * batch, config.guidance_scale, noise=noise, top_k=1)
    return counter.get_total_flops()
