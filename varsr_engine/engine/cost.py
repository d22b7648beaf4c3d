"""Arithmetic and least traffic of each stage, from the ops' own cost models: what a measured time is compared with."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from varsr_engine.config import ModelConfig
from varsr_engine.dispatch import use_backend
from varsr_engine.engine.convolutions import Convolutional
from varsr_engine.kernels.adaln.reference import adaln_cost
from varsr_engine.kernels.gated_residual.reference import gated_residual_cost
from varsr_engine.kernels.guided_sample.reference import guided_sample_cost
from varsr_engine.kernels.mlp.reference import mlp_cost
from varsr_engine.kernels.philox.reference import philox_normal_cost
from varsr_engine.kernels.qkv_norm_rope_cache.reference import qkv_norm_rope_cache_cost
from varsr_engine.kernels.refiner_block.reference import refiner_block_cost
from varsr_engine.kernels.refiner_update.reference import refiner_update_cost
from varsr_engine.kernels.scale_attention.reference import scale_attention_cost
from varsr_engine.kernels.scale_handoff.reference import scale_handoff_cost
from varsr_engine.kernels.spec import Cost
from varsr_engine.model.autoencoder import Decoder
from varsr_engine.model.condition_encoder import ConditionEncoder


def stage_costs(config: ModelConfig, batch: int = 1, element: int = 4) -> dict[str, Cost]:
    """Cost by stage (condition, scale.k, refiner, decoder) of `batch` guided images; element: bytes of the dtype."""
    costs = {"condition": _condition(config, batch, element)} if config.has_prefix else {}
    start = 0
    for step, length in enumerate(config.step_lengths):
        costs[f"scale.{step}"] = _scale(config, batch, step, length, start + length, element)
        start += length
    costs["refiner"] = _refiner(config, batch, element)
    costs["decoder"] = _decoder(config, batch, element)
    return costs


def _block(config: ModelConfig, rows: int, length: int, keys: int, queries: int, element: int) -> Cost:
    """One block that computes keys for `length` tokens and everything else for the last `queries`."""
    C, H, D = config.embed_dim, config.num_heads, config.head_dim
    hidden = config.mlp_ratio * C
    return (
        adaln_cost(rows, length, C, out_bytes=element)
        + qkv_norm_rope_cache_cost(rows, length, C, queries, element)
        + scale_attention_cost(rows, H, queries, keys, D, element)
        + gated_residual_cost(rows, queries, C, C, element)
        + adaln_cost(rows, queries, C, out_bytes=element)
        + mlp_cost(rows, queries, C, hidden, element)
        + gated_residual_cost(rows, queries, hidden, C, element)
    )


def _scale(config: ModelConfig, batch: int, step: int, length: int, keys: int, element: int) -> Cost:
    predicting, guided = config.patch_nums[step] ** 2, config.guidance_ratio(step) != 0
    cost = _block(config, 2 * batch, length, keys, length, element) * (config.depth - 1)
    cost += _block(config, 2 * batch, length, keys, predicting, element)
    cost += guided_sample_cost(batch, predicting, config.embed_dim, config.vocab_size, guided, element)
    if step + 1 < config.num_scales:
        side, following = config.patch_nums[step], config.patch_nums[step + 1]
        cost += scale_handoff_cost(batch, side, following, config.latent_side, config.latent_channels, config.embed_dim)
    return cost


def _refiner(config: ModelConfig, batch: int, element: int) -> Cost:
    W, Z, N = config.refiner_width, config.latent_channels, config.latent_side**2
    rows, parts = 2 * batch * N, 3 * config.refiner_depth + 2
    modulation = Cost(2 * rows * W * parts * W, element * (rows * W * (1 + parts) + parts * W * W))
    step = modulation + Cost(2 * batch * N * Z * W, element * (batch * N * (Z + W) + Z * W))
    step += refiner_block_cost(rows, W, element) * config.refiner_depth
    step += refiner_update_cost(batch, N, W, Z, element) + philox_normal_cost(batch, N, Z)
    cond = Cost(2 * rows * config.embed_dim * W, element * (rows * (config.embed_dim + W) + config.embed_dim * W))
    return step * config.refiner_steps + cond


def _condition(config: ModelConfig, batch: int, element: int) -> Cost:
    with torch.device("meta"):
        encoder = Convolutional(ConditionEncoder(config))
        return _run(encoder, torch.empty(batch, 3, config.image_side, config.image_side), element)


def _decoder(config: ModelConfig, batch: int, element: int) -> Cost:
    with torch.device("meta"):
        decoder = Decoder(config)
        latent = torch.empty(batch, config.latent_channels, config.latent_side, config.latent_side)
        return _run(Convolutional(decoder), latent, element)


def _run(module: torch.nn.Module, x: torch.Tensor, element: int) -> Cost:
    """Cost of a convolutional module by running it without data: every layer reads its input and writes its output."""
    traffic = 0

    def count(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal traffic
        tensors = (*inputs, output, *layer.parameters(recurse=False), *layer.buffers(recurse=False))
        traffic += element * sum(t.numel() for t in tensors)

    handles = [m.register_forward_hook(count) for m in module.modules() if not list(m.children())]
    with torch.no_grad(), use_backend("torch"), FlopCounterMode(display=False) as counter:
        module(x)
    for handle in handles:
        handle.remove()
    return Cost(flops=counter.get_total_flops(), bytes=traffic)
