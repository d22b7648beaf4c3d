"""The refiner loop: ten denoising steps on the last scale's tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from varsr_engine.config import ModelConfig
from varsr_engine.engine.noise import REFINER_STREAM, map_positions
from varsr_engine.engine.weights import RefinerWeights
from varsr_engine.errors import InvalidParamsError
from varsr_engine.kernels.philox import philox_normal
from varsr_engine.kernels.refiner_block import refiner_block
from varsr_engine.kernels.refiner_update import refiner_update
from varsr_engine.model.refiner import Schedule


class RefinerLoop:
    """Samples the residual that quantisation lost. Only the conditional half of the state exists."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.config = config
        self._schedule = Schedule.cosine(config.refiner_train_steps)
        self._positions = map_positions(config.latent_side, device)

    def draw(self, seeds: torch.Tensor, step: int) -> torch.Tensor:
        """Noise (B, p^2, Z) of a step: 0 is the start, n is added in the n-th step."""
        return philox_normal(seeds, self._positions, self.config.latent_channels, step=step, stream=REFINER_STREAM)

    def run(
        self,
        weights: RefinerWeights,
        z: torch.Tensor,
        guidance: torch.Tensor,
        seeds: torch.Tensor,
        *,
        steps: int | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Residual (B, p^2, Z) for z (2, B, p^2, C) and guidance (B,), times the model's residual scale.

        noise (steps + 1, B, p^2, Z) replaces the seeds' own. Fewer `steps` than the model's are an approximation.
        """
        config, w = self.config, weights
        steps = config.refiner_steps if steps is None else steps
        if not 1 <= steps <= config.refiner_train_steps:
            raise InvalidParamsError(f"steps must be in [1, {config.refiner_train_steps}], got {steps}")
        W, B, N = config.refiner_width, z.shape[1], z.shape[2]
        cond = F.linear(z.flatten(0, 2).to(w.cond_embed.weight.dtype), *w.cond_embed).float()
        modulation = torch.empty(cond.shape[0], w.modulation.weight.shape[0], device=z.device, dtype=cond.dtype)
        x = self.draw(seeds, 0) if noise is None else noise[0]
        for i, step in enumerate(self._schedule.reverse_steps(self._schedule.timesteps(steps)), start=1):
            y = F.silu(cond + w.time_embeddings[step.timestep])
            self._modulate(y, w, modulation)
            h = F.linear(x.flatten(0, 1).to(w.input_proj.weight.dtype), *w.input_proj).float().repeat(2, 1)
            parts = modulation.split(W, dim=1)
            for j, block in enumerate(w.blocks):
                refiner_block(h, *parts[3 * j : 3 * j + 3], block, config.norm_eps, out=h)
            h, shift, scale = (t.unflatten(0, (2, B, N)) for t in (h, *parts[-2:]))
            step_noise = None if step.last else self.draw(seeds, i) if noise is None else noise[i]
            x = refiner_update(h, shift, scale, *w.final, x, guidance, step, step_noise, config.norm_eps)
        return x * config.refiner_residual_scale

    @staticmethod
    def _modulate(y: torch.Tensor, weights: RefinerWeights, out: torch.Tensor) -> None:
        """Every block's shift, scale and gate in one product."""
        weight, bias = weights.modulation
        if weight.dtype == out.dtype:
            torch.addmm(bias, y, weight.t(), out=out)
        else:
            out.copy_(F.linear(y.to(weight.dtype), weight, bias))
