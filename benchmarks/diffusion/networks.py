"""The networks that peers are made of, from configs: diffusers' classes with random weights, and no download.

Values are those of the published configuration files; `Sizes` holds what a smoke run makes smaller.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, SD3Transformer2DModel, UNet2DConditionModel, VQModel
from diffusers.models.autoencoders.vae import Decoder
from torch import Tensor, nn

from benchmarks.diffusion.rrdb import RRDBNet
from benchmarks.diffusion.sizes import Sizes
from benchmarks.diffusion.swin import SwinUNet

DOWN = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
UP = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
VQ_LATENT = 3  # channels
PRUNED_IN = 12  # channels of a picture whose 2 x 2 blocks became channels


class NoHint(nn.Module):
    """In the place of a ControlNet's image embedding, where the hint is already among its input channels."""

    def forward(self, hint: Tensor) -> int:
        return 0


def half_of_unet(sizes: Sizes) -> dict[str, Any]:
    """What a UNet of Stable Diffusion 2.1 and its ControlNet have in common."""
    return {
        "down_block_types": DOWN,
        "block_out_channels": sizes.unet_widths,
        "layers_per_block": 2,
        "norm_num_groups": sizes.unet_groups,
        "norm_eps": 1e-5,
        "act_fn": "silu",
        "cross_attention_dim": sizes.text_width,
        "attention_head_dim": sizes.unet_heads,  # diffusers' name for the number of heads
        "use_linear_projection": True,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
    }


def unet(sizes: Sizes, **changes: Any) -> UNet2DConditionModel:
    """The UNet of Stable Diffusion 2.1-base."""
    values = {**half_of_unet(sizes), "up_block_types": UP, "sample_size": sizes.side // 8, "in_channels": 4}
    return UNet2DConditionModel(**{**values, "out_channels": 4, **changes})


def pruned_unet(sizes: Sizes) -> UNet2DConditionModel:
    """AdcSR's: three quarters of the width, pixels in, features for the decoder out."""
    return unet(
        sizes,
        in_channels=PRUNED_IN,
        out_channels=sizes.pruned_out,
        block_out_channels=sizes.pruned_widths,
        norm_num_groups=sizes.pruned_groups,
        cross_attention_dim=sizes.pruned_text_width,
    )


def controlnet(sizes: Sizes, *, latent_hint: bool) -> ControlNetModel:
    """A ControlNet of that UNet; its hint a picture, or a latent that is concatenated to the noisy one."""
    values = {**half_of_unet(sizes), "conditioning_embedding_out_channels": sizes.hint_widths}
    net = ControlNetModel(in_channels=8 if latent_hint else 4, **values)
    zeros = [*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out]
    if latent_hint:
        net.controlnet_cond_embedding = NoHint()
    for parameter in (parameter for module in zeros for parameter in module.parameters()):
        # A ControlNet starts as nothing, and its hint unseen: a trained one does not.
        if not parameter.is_meta:
            nn.init.normal_(parameter, std=0.02)
    return net


def vae(sizes: Sizes, **changes: Any) -> AutoencoderKL:
    """The autoencoder of Stable Diffusion: 8 pixels a cell."""
    values: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": sizes.vae_widths,
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": sizes.vae_groups,
        "sample_size": 768,
        "scaling_factor": 0.18215,
    }
    return AutoencoderKL(**{**values, **changes})


def sd3_vae(sizes: Sizes) -> AutoencoderKL:
    return vae(
        sizes,
        latent_channels=sizes.dit_latent_channels,
        sample_size=1024,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def sd3_transformer(sizes: Sizes) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=128,
        patch_size=2,
        in_channels=sizes.dit_latent_channels,
        out_channels=sizes.dit_latent_channels,
        num_layers=sizes.dit_layers,
        attention_head_dim=sizes.dit_head_width,
        num_attention_heads=sizes.dit_heads,
        joint_attention_dim=sizes.dit_text_width,
        caption_projection_dim=sizes.dit_heads * sizes.dit_head_width,
        pooled_projection_dim=sizes.dit_pooled_width,
        pos_embed_max_size=192,
    )


def vq(sizes: Sizes) -> VQModel:
    """The quantising autoencoder of ResShift: 4 pixels a cell."""
    model = VQModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=sizes.vq_widths,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        latent_channels=VQ_LATENT,
        num_vq_embeddings=sizes.codes,
        sample_size=256,
    )
    codebook = model.quantize.embedding.weight
    if not codebook.is_meta:  # made within 1 / codes of zero: every picture would be the same one
        nn.init.normal_(codebook)
    return model


def swin_unet(sizes: Sizes) -> SwinUNet:
    return SwinUNet(sizes.side // 4, sizes.swin_width, sizes.swin_embed, sizes.swin_heads, sizes.swin_window)


def pruned_decoder(sizes: Sizes) -> Decoder:
    """AdcSR's: half the width, features in."""
    return Decoder(
        in_channels=sizes.pruned_out,
        out_channels=3,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=sizes.pruned_decoder_widths,
        layers_per_block=2,
        norm_num_groups=sizes.vae_groups,
        norm_type="group",
        mid_block_add_attention=True,
    )


def rrdb(sizes: Sizes) -> RRDBNet:
    return RRDBNet(sizes.rrdb_width, sizes.rrdb_growth, sizes.rrdb_blocks)


def text(length: int, width: int) -> Tensor:
    """Random prompt embeddings (1, length, width): dense products take as long as with real ones."""
    return torch.randn(1, length, width)
