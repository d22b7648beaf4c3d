"""The whole model: teacher-forced forward for training, and generation as the paper tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from einops import rearrange
from torch import nn

from varsr_engine.config import ModelConfig
from varsr_engine.kernels.block_causal_attention import block_causal_attention
from varsr_engine.kernels.guided_sample.reference import guide
from varsr_engine.model.autoencoder import Autoencoder
from varsr_engine.model.condition_encoder import ConditionEncoder
from varsr_engine.model.refiner import Refiner
from varsr_engine.model.rope import rope_tables
from varsr_engine.model.transformer import Attend, Block, HeadNorm, cached_attend


@dataclass(slots=True)
class Trace:
    """Every stage of a generation. Branches are ordered conditional rows first, then unconditional ones."""

    prefix: torch.Tensor | None = None  # (B, p^2, C)
    tokens: list[torch.Tensor] = field(default_factory=list)  # K x (B, p_k^2)
    logits: list[torch.Tensor] = field(default_factory=list)  # K x (B, p_k^2, V), guided
    f_hats: list[torch.Tensor] = field(default_factory=list)  # K x (B, Z, p, p)
    z: torch.Tensor | None = None  # (2B, p^2, C), the refiner's condition
    residual: torch.Tensor | None = None  # (B, p^2, Z), the refiner's output x 0.6
    latent: torch.Tensor | None = None  # (B, Z, p, p)


@dataclass(frozen=True, slots=True)
class TeacherForced:
    """Outputs of the training forward, one row a token that predicts (class token and all later ones)."""

    logits: torch.Tensor  # (B, sum p_k^2, V)
    targets: torch.Tensor  # (B, sum p_k^2) tokens of the high-resolution image
    refiner_z: torch.Tensor  # (B, p^2, C)
    refiner_target: torch.Tensor  # (B, p^2, Z), before the division by the residual scale


class Transformer(nn.Module):
    """Everything in the published `var_wo_ddp`: condition encoder, blocks, head and refiner."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C = config.embed_dim
        self.config = config
        self.pos_start = nn.Parameter(torch.zeros(1, config.first_length, C))
        if config.has_prefix:
            self.con_embedding = ConditionEncoder(config)
        self.word_embed = nn.Linear(config.latent_channels, C)
        self.class_emb = nn.Embedding(config.class_rows, C)
        self.lvl_embed = nn.Embedding(config.num_scales, C)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = HeadNorm(config)
        self.head = nn.Linear(C, config.vocab_size)
        self.decoder_norm = nn.LayerNorm(C, eps=config.norm_eps)
        self.diffloss = Refiner(config)
        cos, sin = rope_tables(config)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)
        self.rope_cos: torch.Tensor
        self.rope_sin: torch.Tensor

    def first_input(self, prefix: torch.Tensor | None, cond: torch.Tensor) -> torch.Tensor:
        """Step 0: prefix tokens (if any), then the class token, with positions and level."""
        tokens = cond[:, None] if prefix is None else torch.cat((prefix, cond[:, None]), dim=1)
        return tokens + self.pos_start + self.lvl_embed.weight[0]

    def scale_input(self, pooled: torch.Tensor, step: int) -> torch.Tensor:
        """Step k >= 1: the embedded map (B, p_k^2, Z), with its level."""
        x: torch.Tensor = self.word_embed(pooled) + self.lvl_embed.weight[step]
        return x

    def run_blocks(self, x: torch.Tensor, cond: torch.Tensor, rows: slice, attends: Sequence[Attend]) -> torch.Tensor:
        """All blocks on the part `rows` of the sequence, each with its own attention."""
        cos, sin = self.rope_cos[rows], self.rope_sin[rows]
        for block, attend in zip(self.blocks, attends, strict=True):
            x = block(x, cond, cos, sin, attend)
        return x

    def logits(self, x: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.head_nm(x, cond))
        return out

    def refiner_condition(self, x: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """z = LN(x_last + word_embed(codebook[tokens_last]))."""
        z: torch.Tensor = self.decoder_norm(x + self.word_embed(embedded))
        return z


class VARSR(nn.Module):
    """The reference model. Parameter names are those of the published checkpoints, as `transformer.*` and `vae.*`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.vae = Autoencoder(config)

    def block_causal(self) -> list[Attend]:
        """For each block, attention in which a token sees its own step and the earlier ones."""
        return [partial(block_causal_attention, lengths=self.config.step_lengths)] * self.config.depth

    def teacher_forced(self, lr: torch.Tensor | None, hr: torch.Tensor, labels: torch.Tensor) -> TeacherForced:
        """One pass over the whole sequence under the block-causal mask (paper section 3.1; spec section 11).

        lr and hr (B, 3, 16p, 16p) in [-1, 1], labels (B,).
        """
        return self.forced(lr, *self.vae.quantize.encode(self.vae.encode(hr)), labels)

    def forced(
        self,
        lr: torch.Tensor | None,
        tokens: list[torch.Tensor],
        inputs: torch.Tensor,
        residual: torch.Tensor,
        labels: torch.Tensor,
    ) -> TeacherForced:
        """`teacher_forced` on an image that `Quantizer.encode` has turned into (tokens, inputs, residual)."""
        config, net = self.config, self.transformer
        cond = net.class_emb(labels)
        parts = [net.first_input(None if lr is None else net.con_embedding(lr), cond)]
        pooled = inputs.split(config.step_lengths[1:], dim=1)
        parts += [net.scale_input(part, step) for step, part in enumerate(pooled, start=1)]
        x = net.run_blocks(torch.cat(parts, dim=1), cond, slice(None), self.block_causal())
        predicting = x[:, config.first_length - 1 :]
        logits = net.logits(predicting, cond)
        last = config.latent_side**2
        embedded = self.vae.quantize.embedding(logits[:, -last:].argmax(dim=-1))
        z = net.refiner_condition(x[:, -last:], embedded)
        return TeacherForced(logits, torch.cat(tokens, dim=1), z, residual - embedded)

    @torch.inference_mode()
    def generate(
        self, lr: torch.Tensor | None, labels: torch.Tensor, guidance_scale: float, noise: torch.Tensor
    ) -> tuple[torch.Tensor, Trace]:
        """Greedy generation (top_k = 1), step by step, with growing caches and both branches everywhere.

        lr (B, 3, 16p, 16p) in [-1, 1] or None; labels (B,); noise (refiner steps + 1, B, p^2, Z).
        Returns images (B, 3, 16p, 16p) in [0, 1] and the trace of all stages.
        """
        config, net, quantize = self.config, self.transformer, self.vae.quantize
        B, last = len(labels), config.num_scales - 1
        cond = net.class_emb(torch.cat((labels, torch.full_like(labels, config.uncond_label))))
        prefix = None if lr is None else net.con_embedding(lr)
        trace = Trace(prefix=prefix)
        caches: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(config.depth)]
        attends = [cached_attend(cache) for cache in caches]
        f_hat = cond.new_zeros(B, config.latent_channels, config.latent_side, config.latent_side)
        x = net.first_input(None if prefix is None else prefix.repeat(2, 1, 1), cond)
        start = 0
        for step, length in enumerate(config.step_lengths):
            x = net.run_blocks(x, cond, slice(start, start + length), attends)
            start += length
            x = x[:, -(config.patch_nums[step] ** 2) :]  # of step 0 only the class token predicts
            ratio = torch.full((B,), guidance_scale * config.guidance_ratio(step), device=x.device)
            positive, negative = net.logits(x, cond).chunk(2)
            logits = guide(positive, negative, ratio)
            tokens = logits.argmax(dim=-1)
            f_hat = f_hat + quantize.contribution(tokens, step)
            trace.tokens.append(tokens)
            trace.logits.append(logits)
            trace.f_hats.append(f_hat)
            if step < last:
                x = net.scale_input(quantize.next_map(f_hat, step), step + 1).repeat(2, 1, 1)
        trace.z = net.refiner_condition(x, quantize.embedding(tokens).repeat(2, 1, 1))
        strength = guidance_scale * config.guidance_ratio(last)
        trace.residual = net.diffloss.sample(trace.z.flatten(0, 1), strength, noise.flatten(1, 2)).unflatten(0, (B, -1))
        trace.latent = f_hat + rearrange(trace.residual, "b (h w) z -> b z h w", h=config.latent_side)
        return self.vae.decode(trace.latent), trace
