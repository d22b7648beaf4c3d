"""The refiner loop: ten denoising steps on the last scale's tokens."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from varsr_engine.config import ModelConfig
from varsr_engine.engine.noise import REFINER_STREAM, map_positions, tile_positions
from varsr_engine.engine.request import BatchRequest
from varsr_engine.engine.weights import RefinerWeights
from varsr_engine.errors import InvalidParamsError
from varsr_engine.kernels.linear import linear
from varsr_engine.kernels.panels import take_rows
from varsr_engine.kernels.philox import philox_normal
from varsr_engine.kernels.refiner_block import refiner_block
from varsr_engine.kernels.refiner_embed import refiner_embed
from varsr_engine.kernels.refiner_update import refiner_update
from varsr_engine.model.refiner import DenoiseStep, Schedule


class RefinerLoop:
    """Samples the residual that quantisation lost. Only the conditional half of the state exists."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self.config = config
        self._schedule = Schedule.cosine(config.refiner_train_steps)
        self._cells = map_positions(config.latent_side, device)

    def draw(self, seeds: torch.Tensor, origins: torch.Tensor, step: int) -> torch.Tensor:
        """Noise (B, p^2, Z) of a step, of unit variance: 0 is the start, n is added in the n-th step."""
        return self._draw(seeds, self._positions(origins), step)

    def _positions(self, origins: torch.Tensor) -> torch.Tensor:
        side = self.config.latent_side
        return tile_positions(self._cells, side, origins, side)

    def _draw(
        self, seeds: torch.Tensor, positions: torch.Tensor, step: int | range, std: torch.Tensor | None = None
    ) -> torch.Tensor:
        return philox_normal(seeds, positions, self.config.latent_channels, step=step, stream=REFINER_STREAM, std=std)

    def run(
        self,
        weights: RefinerWeights,
        z: torch.Tensor,
        request: BatchRequest,
        *,
        steps: int | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Residual (B, p^2, Z) for z (2, B, p^2, C), times the model's residual scale; z (1, B, p^2, C): unguided.

        All noise, the start included, is multiplied by the request's refiner_temperature. noise
        (steps + 1, B, p^2, Z) replaces the seeds' own. Fewer `steps` than the model's are an approximation.
        """
        config, w = self.config, weights
        steps = config.refiner_steps if steps is None else steps
        if not 1 <= steps <= config.refiner_train_steps:
            raise InvalidParamsError(f"steps must be in [1, {config.refiner_train_steps}], got {steps}")
        cond = linear(z.flatten(0, 2).to(w.cond_embed.weight.dtype), *w.cond_embed)
        if len(z) == 1:  # the ops take both branches: the other is a copy
            cond = cond.repeat(2, 1)
        guidance = request.guidance * (config.guidance_ratio(config.num_scales - 1) if len(z) == 2 else 0.0)
        positions = self._positions(request.origins)

        if noise is None:  # a small tensor, for the last step adds none: one launch instead of ten
            noise = self._draw(request.seeds, positions, range(steps), request.refiner_temperature)
        else:
            noise = noise * request.refiner_temperature[:, None, None]
        x = noise[0]
        for i, step in enumerate(self._schedule.reverse_steps(self._schedule.timesteps(steps)), start=1):
            x = self._denoise(w, x, cond, len(z), guidance, step, None if step.last else noise[i])
        return x * config.refiner_residual_scale

    def _denoise(
        self,
        w: RefinerWeights,
        x: torch.Tensor,
        cond: torch.Tensor,
        branches: int,
        guidance: torch.Tensor,
        step: DenoiseStep,
        noise: torch.Tensor | None,
    ) -> torch.Tensor:
        """x (B, p^2, Z) one step later. With one branch the blocks, which take the time, run on its rows."""
        W, eps, shape = self.config.refiner_width, self.config.norm_eps, (branches, *x.shape[:2])
        y, h = refiner_embed(cond, w.time_embeddings[step.timestep], x.flatten(0, 1), *w.input_proj)
        y, h = (t[: branches * x.shape[:2].numel()] for t in (y, h))
        modulations = self._modulations(y, w)
        for block in w.blocks:
            shift, scale, gate = next(modulations).split(W, dim=1)
            refiner_block(h, shift, scale, gate, block, eps, out=h)
        h, shift, scale = (t.unflatten(0, shape) for t in (h, *next(modulations).split(W, dim=1)))
        if branches == 1:
            h, shift, scale = (t.expand(2, -1, -1, -1) for t in (h, shift, scale))
        return refiner_update(h, shift, scale, *w.final, x, guidance, step, noise, eps)

    def _modulations(self, y: torch.Tensor, weights: RefinerWeights) -> Iterator[torch.Tensor]:
        """Each block's (shift, scale, gate) as (R, 3W), then the final layer's (shift, scale) as (R, 2W), in y's dtype.

        On a GPU one product gives those of the whole step. On a CPU each block's is made when it is due: all of them
        would take seven times the last-level cache, and be read back from memory.
        """
        W, (weight, bias) = self.config.refiner_width, weights.modulation
        widths = [3 * W] * self.config.refiner_depth + [2 * W]
        if y.device.type != "cpu":
            yield from linear(y, weight, bias).split(widths, dim=1)
            return
        buffer = torch.empty(y.shape[0], 3 * W, device=y.device, dtype=y.dtype)
        start = 0
        for width, part_bias in zip(widths, bias.split(widths), strict=True):
            out = buffer.view(-1)[: y.shape[0] * width].view(y.shape[0], width)
            yield linear(y, take_rows(weight, start, start + width), part_bias, out=out)
            start += width
