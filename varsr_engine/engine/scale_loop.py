"""The scale loop: ten steps through the transformer, from prefix tokens to the last scale's tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from varsr_engine.config import ModelConfig
from varsr_engine.dispatch import Backend
from varsr_engine.engine.kv_cache import KVCache
from varsr_engine.engine.noise import SAMPLING_STREAM, map_positions, tile_positions
from varsr_engine.engine.request import BatchRequest
from varsr_engine.engine.weights import BlockWeights, TransformerWeights
from varsr_engine.kernels.adaln import adaln
from varsr_engine.kernels.gated_residual import gated_residual
from varsr_engine.kernels.guided_sample import Sampling, guided_sample
from varsr_engine.kernels.mlp import mlp
from varsr_engine.kernels.qkv_norm_rope_cache import qkv_norm_rope_cache
from varsr_engine.kernels.quantized import QuantizedRows, QuantizedWeight, Rows, groups
from varsr_engine.kernels.scale_attention import scale_attention
from varsr_engine.kernels.scale_handoff import scale_handoff
from varsr_engine.model.varsr import Trace

OnStage = Callable[[str], None]
OnScale = Callable[[str, torch.Tensor], None]  # (stage, f_hat as it is then: the next scale changes it in place)


class ScaleResult(NamedTuple):
    hidden: torch.Tensor  # (2B or unguided B, p^2, C): the last step's output, conditional rows first; not of a draft
    tokens: torch.Tensor  # (B, p^2): the last scale's tokens; of a draft, those of the last that ran
    f_hat: torch.Tensor  # (B, Z, p, p)


class Scratch(NamedTuple):
    """Intermediate buffers that all layers and steps share: fresh ones would cost a page fault each 4 KB on a CPU."""

    normalised: torch.Tensor  # (2B, L, C) compute dtype
    queries: torch.Tensor  # (2B, L, C) compute dtype
    attended: torch.Tensor  # (2B, L, C) compute dtype
    hidden: torch.Tensor  # (2B, L, 4C) compute dtype
    fp8_normalised: QuantizedRows | None = None  # instead of those two, in quantized layers
    fp8_hidden: QuantizedRows | None = None

    @classmethod
    def allocate(
        cls, config: ModelConfig, rows: int, device: torch.device, dtype: torch.dtype, fp8: bool = False
    ) -> Scratch:
        """Buffers for `rows` sequences of the longest step."""
        C, F, L = config.embed_dim, config.embed_dim * config.mlp_ratio, max(config.step_lengths)
        normalised, queries, attended, hidden = (
            torch.empty(rows, L, width, device=device, dtype=dtype) for width in (C, C, C, F)
        )
        if not fp8:
            return cls(normalised, queries, attended, hidden)
        fp8_normalised = QuantizedRows.empty(rows, L, C, 1, device)
        fp8_hidden = QuantizedRows.empty(rows, L, F, groups(F), device)
        return cls(normalised, queries, attended, hidden, fp8_normalised, fp8_hidden)

    def narrow(self, rows: int, length: int) -> Scratch:
        """The same memory for fewer sequences, or of another length."""

        def narrowed(t: torch.Tensor) -> torch.Tensor:
            width = t.shape[-1]
            return t.view(-1)[: rows * length * width].view(rows, length, width)

        normalised, queries, attended, hidden = map(narrowed, self[:4])
        fp8_normalised, fp8_hidden = (part and QuantizedRows(*map(narrowed, part)) for part in self[4:])
        return Scratch(normalised, queries, attended, hidden, fp8_normalised, fp8_hidden)

    def rows_for(self, block: BlockWeights) -> tuple[Rows, Rows]:
        """(normalised, hidden) in the form that the block multiplies."""
        if isinstance(block.qkv.weight, QuantizedWeight):
            assert self.fp8_normalised is not None and self.fp8_hidden is not None
            return self.fp8_normalised, self.fp8_hidden
        return self.normalised, self.hidden


class ScaleLoop:
    """Runs the transformer over all scales for one batch.

    Rows are [conditional B][unconditional B]; after the last scale with guidance they are the conditional ones alone.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: TransformerWeights,
        device: torch.device,
        dtype: torch.dtype,
        attention: Backend | None = None,
    ) -> None:
        """attention: the backend of `scale_attention`, as dispatch chooses if None."""
        self.config, self.weights = config, weights
        self.device, self.dtype = device, dtype
        self._attention = attention
        ratios = [config.guidance_ratio(step) for step in range(config.num_scales)]
        self._ratios = torch.tensor(ratios, dtype=torch.float32, device=device)
        self._cells = [map_positions(side, device) for side in config.patch_nums]

    def run(
        self,
        prefix: torch.Tensor | None,
        request: BatchRequest,
        on_scale: OnScale,
        trace: Trace | None = None,
        scales: int | None = None,
        guided: int | None = None,
    ) -> ScaleResult:
        """prefix (B, p^2, C), or None for the class-to-image prior. on_scale("scale.k", f_hat) is called after scale k.

        scales: how many run, for a draft; None: all. guided: how many of the first have guidance; None: all. The
        others run on the conditional rows alone.
        """
        config, w, B = self.config, self.weights, request.batch
        guided = config.num_scales if guided is None else guided
        rows = request.labels
        if guided > 0:
            rows = torch.cat((rows, torch.full_like(rows, config.uncond_label)))
        modulation, head_modulation = w.adaln[rows], w.head_adaln[rows]
        cache = KVCache(config, len(rows), self.device, self.dtype)
        scratch = Scratch.allocate(config, len(rows), self.device, self.dtype, fp8=bool(w.fp8_steps))
        x = self._first_input(prefix, rows)
        f_hat = x.new_zeros(B, config.latent_channels, config.latent_side, config.latent_side)
        strengths = self._ratios[:, None] * request.guidance
        start, last = 0, config.num_scales - 1
        final = last if scales is None else scales - 1
        for step, length in enumerate(config.step_lengths[: final + 1]):
            predicting = config.patch_nums[step] ** 2  # of step 0 only the class token predicts
            blocks = w.fp8_blocks if step in w.fp8_steps else w.blocks
            if step == guided > 0:
                modulation, head_modulation = modulation[:B], head_modulation[:B]
                cache.keep_rows(B)
            buffers = scratch.narrow(len(x), length)
            x = self._run_blocks(x, blocks, modulation, cache, buffers, start, predicting, final=step == final)
            start += length
            tokens = self._sample(x, head_modulation, request, strengths[step], step, trace)
            if step < last:
                x = scale_handoff(tokens, w.codebook, w.handoffs[step], f_hat, copies=2 if step + 1 < guided else 1)
            else:
                f_hat += w.codebook[tokens].transpose(1, 2).unflatten(2, f_hat.shape[2:])
            if trace is not None:
                trace.tokens.append(tokens)
                trace.f_hats.append(f_hat.clone())
            on_scale(f"scale.{step}", f_hat)
        return ScaleResult(x, tokens, f_hat)

    def _positions(self, request: BatchRequest, step: int) -> torch.Tensor:
        """Where a step's tokens lie in their images, (B, n)."""
        side = self.config.patch_nums[step]
        return tile_positions(self._cells[step], side, request.origins, self.config.latent_side)

    def _first_input(self, prefix: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
        """(rows, L_0, C): the prefix is the same for both branches, the class token is not."""
        w = self.weights
        x = w.first_constant.repeat(rows.shape[0], 1, 1)
        if prefix is not None:
            x[:, :-1].unflatten(0, (-1, prefix.shape[0])).add_(prefix)
        x[:, -1] += w.class_embedding[rows]
        return x

    def _run_blocks(
        self,
        x: torch.Tensor,
        blocks: list[BlockWeights],
        modulation: torch.Tensor,
        cache: KVCache,
        scratch: Scratch,
        start: int,
        predicting: int,
        final: bool,
    ) -> torch.Tensor:
        """All blocks on one step's rows (R, L, C), in place; returns the `predicting` last tokens' output.

        The last block computes keys and values for all tokens, the rest only for those that predict. After the last
        step (`final`) a layer's cache is given back as soon as it has been read.
        """
        L = x.shape[1]
        for index, block in enumerate(blocks):
            queries = predicting if index == len(blocks) - 1 else L
            x = self._block(x, block, modulation[:, index], cache.layer(index), start, queries, scratch)
            if final:
                cache.release(index)
        return x

    def _block(
        self,
        x: torch.Tensor,
        block: BlockWeights,
        modulation: torch.Tensor,
        kv: tuple[torch.Tensor, torch.Tensor],
        start: int,
        queries: int,
        scratch: Scratch,
    ) -> torch.Tensor:
        w, eps, end = self.weights, self.config.norm_eps, start + x.shape[1]
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unbind(1)
        k, v = kv
        h = adaln(x, scale1, shift1, eps, out=scratch.rows_for(block)[0])
        if queries < x.shape[1]:
            x, scratch = x[:, -queries:].contiguous(), scratch.narrow(len(x), queries)
        q = scratch.queries.view(x.shape[0], self.config.num_heads, queries, self.config.head_dim)
        rope = w.rope_cos[start:end], w.rope_sin[start:end]
        qkv, fc1, fc2 = block.qkv, block.fc1, block.fc2
        qkv_norm_rope_cache(h, qkv.weight, qkv.bias, block.q_scale, *rope, k, v, start, num_queries=queries, out=q)
        keys, values = k[:, :, :end], v[:, :, :end]
        attended = scale_attention(
            q, keys, values, out=scratch.attended, bound=block.score_bound, backend=self._attention
        )
        gated_residual(x, attended, *block.proj, gate1, out=x)
        normalised, hidden = scratch.rows_for(block)
        h = adaln(x, scale2, shift2, eps, out=normalised)
        hidden = mlp(h, fc1.weight, fc1.bias, out=hidden)
        return gated_residual(x, hidden, fc2.weight, fc2.bias, gate2, out=x)

    def _sample(
        self,
        x: torch.Tensor,
        modulation: torch.Tensor,
        request: BatchRequest,
        strength: torch.Tensor,
        step: int,
        trace: Trace | None,
    ) -> torch.Tensor:
        """Tokens (B, n) of a step from its output, (2B, n, C) or without guidance (B, n, C)."""
        B = request.batch
        guided = len(x) > B and self.config.guidance_ratio(step) != 0  # at 0 the unconditional logits count for nothing
        rows = 2 * B if guided else B
        h = adaln(x[:rows], modulation[:rows, 0], modulation[:rows, 1], self.config.norm_eps)
        sampling = None
        if not request.greedy:
            sampling = Sampling(
                request.top_k,
                request.top_p,
                request.temperature,
                request.seeds,
                self._positions(request, step),
                step,
                SAMPLING_STREAM,
            )
        uncond = h[B:] if guided else None
        tokens, logits = guided_sample(h[:B], uncond, strength, *self.weights.head, sampling)
        if trace is not None:
            trace.logits.append(logits)
        return tokens
