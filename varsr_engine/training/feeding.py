"""What the transformer is fed in training instead of the nearest tokens: noisy ones, or its own."""

from __future__ import annotations

import torch

from varsr_engine.model.quantizer import Feed, Quantizer
from varsr_engine.model.transformer import cached_attend
from varsr_engine.model.varsr import VARSR

NEAR = 8  # a noisy token is one of this many nearest entries


def noisy(quantizer: Quantizer, largest_share: float) -> Feed:
    """Replaces tokens by another near entry; the share, up to `largest_share`, is drawn for each image.

    Source of the idea: bitwise self-correction of Infinity (arXiv 2412.04431, section 3.3), for a plain codebook.
    """

    def feed(step: int, vectors: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
        codebook = quantizer.embedding.weight
        distance = codebook.square().sum(dim=1) - 2 * vectors @ codebook.t()
        near = distance.topk(min(NEAR, codebook.shape[0]), dim=-1, largest=False).indices
        pick = torch.randint(near.shape[-1], nearest.shape, device=near.device)
        other = near.gather(-1, pick[..., None])[..., 0]
        share = torch.rand(nearest.shape[0], 1, device=near.device) * largest_share
        return torch.where(torch.rand(nearest.shape, device=near.device) < share, other, nearest)

    return feed


@torch.no_grad()
def own_tokens(model: VARSR, lr: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
    """The model's greedy tokens without guidance, of every scale but the last: K - 1 tensors (B, p_k^2)."""
    config, net, quantize = model.config, model.transformer, model.vae.quantize
    cond = net.class_emb(labels)
    x = net.first_input(net.con_embedding(lr), cond)
    caches: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(config.depth)]
    attends = [cached_attend(cache) for cache in caches]
    f_hat = cond.new_zeros(lr.shape[0], config.latent_channels, config.latent_side, config.latent_side)
    tokens, start = [], 0
    for step, length in enumerate(config.step_lengths[:-1]):
        x = net.run_blocks(x, cond, slice(start, start + length), attends)
        start += length
        tokens.append(net.logits(x[:, -(config.patch_nums[step] ** 2) :], cond).argmax(dim=-1))
        if step < config.num_scales - 2:
            f_hat = f_hat + quantize.contribution(tokens[-1], step)
            x = net.scale_input(quantize.next_map(f_hat, step), step + 1)
    return tokens


def mixed(own: list[torch.Tensor], others: Feed | None) -> Feed:
    """Own tokens for the first rows of the batch, `others` (or the nearest) for the rest."""

    def feed(step: int, vectors: torch.Tensor, nearest: torch.Tensor) -> torch.Tensor:
        rows = own[step].shape[0]
        rest = nearest[rows:]
        if others is not None and rest.shape[0] > 0:
            rest = others(step, vectors[rows:], rest)
        return torch.cat((own[step], rest))

    return feed
