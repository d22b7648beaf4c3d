"""The two convolutional ends, condition encoder and decoder: the reference modules with their layers on fused ops."""

from __future__ import annotations

import torch
from torch import nn

from varsr_engine.engine.weights import Reader
from varsr_engine.kernels.conv3x3 import conv3x3, prepare_conv3x3
from varsr_engine.kernels.upsample_conv import phase_weights, upsample_conv
from varsr_engine.model.autoencoder import Decoder, ResnetBlock, Upsample
from varsr_engine.model.condition_encoder import ConditionEncoder


class FusedConv(nn.Module):
    """A 3x3 convolution of stride 1 on the op `conv3x3`."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None
        self.weights = prepare_conv3x3(conv.weight, conv.bias)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        return conv3x3(x, self.weights, residual)


class FusedResnetBlock(nn.Module):
    """`ResnetBlock` whose second convolution adds the shortcut itself."""

    def __init__(self, block: ResnetBlock) -> None:
        super().__init__()
        self.norm1, self.norm2, self.shortcut = block.norm1, block.norm2, block.nin_shortcut
        self.conv1, self.conv2 = FusedConv(block.conv1), FusedConv(block.conv2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(self.norm1(x))
        out: torch.Tensor = self.conv2(self.norm2(h), self.shortcut(x))
        return out


class PhaseUpsample(nn.Module):
    """`Upsample` with its 3x3 kernel folded into one 2x2 kernel an output phase."""

    def __init__(self, upsample: Upsample) -> None:
        super().__init__()
        assert upsample.conv.bias is not None
        self.phases, self.bias = phase_weights(upsample.conv.weight.detach()), upsample.conv.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return upsample_conv(x, self.phases, self.bias)


def fuse(module: nn.Module) -> nn.Module:
    """The module with every layer that a fused op computes replaced by it, in place."""
    if isinstance(module, ResnetBlock):
        return FusedResnetBlock(module)
    if isinstance(module, Upsample):
        return PhaseUpsample(module)
    if isinstance(module, nn.Conv2d) and (module.kernel_size, module.stride) == ((3, 3), (1, 1)):
        return FusedConv(module)
    for name, child in module.named_children():
        setattr(module, name, fuse(child))
    return module


class Convolutional(nn.Module):
    """Fused reference modules, run channels-last in one dtype; float32 in and out."""

    def __init__(self, *modules: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layers, self.dtype = nn.Sequential(*(fuse(module) for module in modules)), dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layers(x.to(self.dtype).contiguous(memory_format=torch.channels_last))
        return result.float()


def load_module(module: nn.Module, read: Reader) -> nn.Module:
    """Give a module built without memory its parameters, as they lie in the file where nothing changes."""
    module.load_state_dict({name: read.compute(name) for name in module.state_dict()}, assign=True)
    return module.requires_grad_(False).eval()


def load_condition_encoder(read: Reader) -> Convolutional:
    with torch.device("meta"):
        encoder = ConditionEncoder(read.config)
    return Convolutional(load_module(encoder, read.under("transformer.con_embedding.")), dtype=read.dtype)


def load_decoder(read: Reader) -> Convolutional:
    """post_quant_conv and the decoder: latents (B, Z, p, p) to images (B, 3, 16p, 16p), before the clamp."""
    config = read.config
    with torch.device("meta"):
        post = nn.Conv2d(config.latent_channels, config.latent_channels, 3, padding=1)
        decoder = Decoder(config)
    load_module(post, read.under("vae.post_quant_conv."))
    load_module(decoder, read.under("vae.decoder."))
    return Convolutional(post, decoder, dtype=read.dtype)
