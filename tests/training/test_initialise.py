"""What the starting weights are for: colours survive, and activations keep their size."""

from __future__ import annotations

import pytest
import torch

from varsr_engine.config import ModelConfig
from varsr_engine.model.autoencoder import Autoencoder
from varsr_engine.model.transformer import Block
from varsr_engine.model.varsr import Transformer
from varsr_engine.training.config import TrainConfig
from varsr_engine.training.initialise import initialise_autoencoder, initialise_transformer


def autoencoder(config: ModelConfig) -> Autoencoder:
    torch.manual_seed(0)
    vae = Autoencoder(config)
    initialise_autoencoder(vae)
    return vae.eval()


@pytest.fixture
def mini() -> ModelConfig:
    return TrainConfig.load("mini-autoencoder").model


def textured(config: ModelConfig) -> torch.Tensor:
    side = config.image_side
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1)).mul(0.2).clamp(-1, 1)


@torch.no_grad()
def test_the_encoder_passes_every_colour(mini: ModelConfig) -> None:
    vae, side = autoencoder(mini), mini.image_side
    seen: list[torch.Tensor] = []
    vae.encoder.down[-2].downsample.register_forward_hook(lambda m, i, out: seen.append(out))  # type: ignore[union-attr]
    colours = torch.eye(3)[:, :, None, None].expand(3, 3, side, side).contiguous()
    vae.encode(colours)
    means = seen[0].mean(dim=(2, 3))
    difference = torch.cdist(means, means)
    assert difference[~torch.eye(3, dtype=torch.bool)].min() > 0.5


@torch.no_grad()
def test_activations_keep_their_size(mini: ModelConfig) -> None:
    vae = autoencoder(mini)
    latent = vae.encode(textured(mini))
    assert 0.1 < latent.std() < 5
    assert 0.05 < vae.decoder(vae.post_quant_conv(latent)).std() < 5


def test_residual_branches_start_small(mini: ModelConfig) -> None:
    torch.manual_seed(0)
    net = Transformer(mini)
    initialise_transformer(net, local_heads=True)
    block = net.blocks[0]
    assert isinstance(block, Block)
    assert block.attn.proj.weight.std() < 0.4 * mini.embed_dim**-0.5
    assert net.diffloss.net.final_layer.linear.weight.abs().max() == 0
