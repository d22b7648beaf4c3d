"""How large the peers' networks are: as published, or small ones of the same kinds for a smoke run on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

SCALE = 4  # output pixels a side for each input pixel

Four = tuple[int, int, int, int]


@dataclass(frozen=True)
class Sizes:
    """Widths of every network that a peer is made of. `side`: pixels of the square output that they are built for."""

    side: int
    # the UNet of Stable Diffusion 2.1, and the ControlNet that copies its first half
    unet_widths: Four
    unet_heads: Four
    unet_groups: int
    hint_widths: Four  # of the ControlNet's embedding of an image
    text_length: int
    text_width: int
    # autoencoders
    vae_widths: Four
    vae_groups: int
    vq_widths: tuple[int, int, int]
    codes: int
    # the Swin UNet of ResShift
    swin_width: int
    swin_embed: int
    swin_heads: int
    swin_window: int
    # the transformer of Stable Diffusion 3
    dit_layers: int
    dit_heads: int
    dit_head_width: int
    dit_latent_channels: int
    dit_text_length: int
    dit_text_width: int
    dit_pooled_width: int
    # AdcSR's pruned UNet and decoder
    pruned_widths: Four
    pruned_groups: int
    pruned_out: int
    pruned_decoder_widths: Four
    pruned_text_width: int
    # RRDBNet
    rrdb_width: int
    rrdb_growth: int
    rrdb_blocks: int
    most_steps: int | None = None  # of a sampler; None: as published

    @property
    def low_side(self) -> int:
        return self.side // SCALE

    def steps(self, published: int) -> int:
        return published if self.most_steps is None else min(published, self.most_steps)


PUBLISHED = Sizes(
    side=512,
    unet_widths=(320, 640, 1280, 1280),
    unet_heads=(5, 10, 20, 20),
    unet_groups=32,
    hint_widths=(16, 32, 96, 256),
    text_length=77,
    text_width=1024,
    vae_widths=(128, 256, 512, 512),
    vae_groups=32,
    vq_widths=(128, 256, 512),
    codes=8192,
    swin_width=160,
    swin_embed=192,
    swin_heads=6,
    swin_window=8,
    dit_layers=24,
    dit_heads=24,
    dit_head_width=64,
    dit_latent_channels=16,
    dit_text_length=333,
    dit_text_width=4096,
    dit_pooled_width=2048,
    pruned_widths=(240, 480, 960, 960),
    pruned_groups=24,
    pruned_out=256,
    pruned_decoder_widths=(64, 128, 256, 256),
    pruned_text_width=8,
    rrdb_width=64,
    rrdb_growth=32,
    rrdb_blocks=23,
)

SMALL = Sizes(
    side=64,
    unet_widths=(16, 16, 32, 32),
    unet_heads=(1, 2, 2, 2),
    unet_groups=8,
    hint_widths=(8, 8, 16, 16),
    text_length=5,
    text_width=16,
    vae_widths=(8, 16, 16, 16),
    vae_groups=8,
    vq_widths=(32, 32, 32),  # diffusers fixes 32 groups here
    codes=16,
    swin_width=32,
    swin_embed=32,
    swin_heads=2,
    swin_window=2,
    dit_layers=2,
    dit_heads=2,
    dit_head_width=8,
    dit_latent_channels=16,
    dit_text_length=5,
    dit_text_width=16,
    dit_pooled_width=16,
    pruned_widths=(12, 12, 24, 24),
    pruned_groups=6,
    pruned_out=16,
    pruned_decoder_widths=(8, 8, 16, 16),
    pruned_text_width=8,
    rrdb_width=8,
    rrdb_growth=4,
    rrdb_blocks=2,
    most_steps=2,
)
