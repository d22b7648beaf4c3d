"""The two convolutional ends, condition encoder and decoder: the reference modules, laid out for speed."""

from __future__ import annotations

import torch
from torch import nn

from varsr_engine.engine.weights import Reader
from varsr_engine.kernels.upsample_conv import phase_weights, upsample_conv
from varsr_engine.model.autoencoder import Decoder, Upsample
from varsr_engine.model.condition_encoder import ConditionEncoder


class PhaseUpsample(nn.Module):
    """`Upsample` with its 3x3 kernel folded into one 2x2 kernel an output phase."""

    def __init__(self, upsample: Upsample) -> None:
        super().__init__()
        assert upsample.conv.bias is not None
        self.register_buffer("phases", phase_weights(upsample.conv.weight.detach()))
        self.register_buffer("bias", upsample.conv.bias.detach())
        self.phases: torch.Tensor
        self.bias: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return upsample_conv(x, self.phases, self.bias)


class Convolutional(nn.Module):
    """A reference module that runs channels-last, in the weights' dtype, and returns float32."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = next(self.parameters()).dtype
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        result: torch.Tensor = self.layers(x)
        return result.float()


def load_module(module: nn.Module, read: Reader) -> nn.Module:
    """Give a module built without memory its parameters, as they lie in the file where nothing changes."""
    module.load_state_dict({name: read.compute(name) for name in module.state_dict()}, assign=True)
    return module.requires_grad_(False).eval()


def load_condition_encoder(read: Reader) -> Convolutional:
    with torch.device("meta"):
        encoder = ConditionEncoder(read.config)
    return Convolutional(load_module(encoder, read.under("transformer.con_embedding.")))


def load_decoder(read: Reader) -> Convolutional:
    """post_quant_conv and the decoder: latents (B, Z, p, p) to images (B, 3, 16p, 16p), before the clamp."""
    config = read.config
    with torch.device("meta"):
        post = nn.Conv2d(config.latent_channels, config.latent_channels, 3, padding=1)
        decoder = Decoder(config)
    load_module(post, read.under("vae.post_quant_conv."))
    load_module(decoder, read.under("vae.decoder."))
    for level in decoder.up:
        if hasattr(level, "upsample"):
            level.upsample = PhaseUpsample(level.upsample)
    return Convolutional(post, decoder)
