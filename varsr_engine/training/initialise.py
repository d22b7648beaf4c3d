"""Weights at the start of training."""

from __future__ import annotations

import math
import re

import torch
from torch import nn

from varsr_engine.model.autoencoder import AttentionBlock, Autoencoder, ResnetBlock
from varsr_engine.model.refiner import Refiner, ResidualBlock
from varsr_engine.model.transformer import Block
from varsr_engine.model.varsr import Transformer

# The convolutions that no residual block skips.
MAIN_PATH = re.compile(r"(conv_in|conv_out|quant_conv|nin_shortcut|sample\.conv)$")
SILU_GAIN = 1.68  # keeps the variance of a standard normal through SiLU
LOCAL_SCALE = 20.0  # attention scale of a local head: a neighbour at distance one gets exp(-0.19 * 20) of the weight
LOCAL_PAIRS = 6  # the fastest rotations, which tell neighbours apart


@torch.no_grad()
def initialise_autoencoder(vae: Autoencoder) -> None:
    """The path that no residual block skips keeps the variance and the colours; residual branches start small.

    torch's own start divides the variance by three at every convolution: after four levels the branches, which are
    normalised, would drown the image. The first three channels start as the image, smaller and larger again: without
    that, a narrow network fills its first levels with detail before colour.
    """
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=fan_in**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in vae.modules():
        if isinstance(module, ResnetBlock):
            module.conv2.weight.mul_(0.1)
        elif isinstance(module, AttentionBlock):
            module.proj_out.weight.mul_(0.1)
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d) and MAIN_PATH.search(name):
            pass_three_channels(module)
    nn.init.normal_(vae.quantize.embedding.weight, std=0.5)


def pass_three_channels(conv: nn.Conv2d) -> None:
    """Give the first three output channels the first three input channels, averaged where the stride is 2."""
    size, start = (2, 0) if conv.stride[0] == 2 else (1, conv.kernel_size[0] // 2)
    taps = slice(start, start + size)
    conv.weight[:3].mul_(0.1)
    for channel in range(3):
        conv.weight[channel, channel, taps, taps] += 1 / size**2


@torch.no_grad()
def initialise_transformer(net: Transformer, local_heads: bool) -> None:
    """Variance-preserving normals, residual branches scaled by depth, and, if asked for, one local head a block."""
    C, depth = net.config.embed_dim, net.config.depth
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith("con_embedding"):
            nn.init.trunc_normal_(module.weight, std=min(0.02, C**-0.5) if "diffloss" not in name else 0.05)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if net.config.has_prefix:
        for name, module in net.con_embedding.named_modules():
            if isinstance(module, nn.Conv2d):
                gain = 1.0 if name == "conv_out" else SILU_GAIN
                nn.init.normal_(module.weight, std=gain * module.weight[0].numel() ** -0.5)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
    for table in (net.pos_start, net.class_emb.weight, net.lvl_embed.weight):
        nn.init.trunc_normal_(table, std=0.1)
    nn.init.trunc_normal_(net.word_embed.weight, std=C**-0.5)
    for block in net.blocks:
        assert isinstance(block, Block)
        initialise_block(block, depth, local_heads)
    initialise_refiner(net.diffloss)


def initialise_block(block: Block, depth: int, local_heads: bool) -> None:
    attention, C = block.attn, block.attn.proj.in_features
    nn.init.trunc_normal_(attention.mat_qkv.weight, std=C**-0.5)
    for linear in (attention.proj, block.ffn.fc2):
        nn.init.trunc_normal_(linear.weight, std=linear.in_features**-0.5 / math.sqrt(2 * depth))
    nn.init.trunc_normal_(block.ffn.fc1.weight, std=C**-0.5)
    ada = block.ada_lin[1]
    assert isinstance(ada, nn.Linear)
    gates, shift1 = ada.bias[: 2 * C], ada.bias[4 * C : 5 * C]
    gates.fill_(1.0)
    if local_heads:
        make_head_local(block, shift1)


def make_head_local(block: Block, shift: torch.Tensor) -> None:
    """Let the first head attend to the tokens nearest on the common grid, whatever they hold.

    The shift before attention gains a random direction u, and the head's queries and keys a large component along one
    fixed vector w where the input lies along u. With the same w on both sides, q.k after the rotary positions is a sum
    of cosines of the distance, largest at none: scale-aligned RoPE makes that the same place on every scale.
    """
    attention, C = block.attn, block.attn.proj.in_features
    H = attention.scale_mul_1H11.shape[1]
    D = C // H
    u = torch.randn(C) * 0.5
    shift.add_(u)
    w = torch.zeros(D)
    for axis in range(2):  # pairs of dimensions: the first D/4 rotate with the row, the others with the column
        w[axis * D // 2 : axis * D // 2 + 2 * min(LOCAL_PAIRS, D // 4)] = 1.0
    w *= 3 * math.sqrt(D) / w.norm()
    for part in range(2):
        attention.mat_qkv.weight[part * C : part * C + D] += torch.outer(w, u / u.square().sum())
    attention.scale_mul_1H11[0, 0] = math.log(LOCAL_SCALE)


def initialise_refiner(refiner: Refiner) -> None:
    """Gates and the output start at zero, as in DiT: the first estimate of the noise is none."""
    net = refiner.net
    nn.init.normal_(net.time_embed.mlp[0].weight, std=0.02)  # type: ignore[arg-type]
    for block in net.res_blocks:
        assert isinstance(block, ResidualBlock)
        modulation = block.adaLN_modulation[1]
        assert isinstance(modulation, nn.Linear)
        nn.init.zeros_(modulation.weight)
        nn.init.zeros_(modulation.bias)
    for module in (net.final_layer.linear, net.final_layer.adaLN_modulation[1]):
        assert isinstance(module, nn.Linear)
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
