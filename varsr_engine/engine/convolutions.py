"""The two convolutional ends, condition encoder and decoder: the reference modules with their layers on fused ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from varsr_engine.engine.group_statistics import GroupStatistics
from varsr_engine.engine.weights import Reader
from varsr_engine.kernels.conv3x3 import conv3x3, prepare_conv3x3
from varsr_engine.kernels.upsample_conv import phase_weights, upsample_conv
from varsr_engine.model.autoencoder import AttentionBlock, Decoder, Norm, ResnetBlock, Upsample
from varsr_engine.model.condition_encoder import ConditionEncoder

KEEP_BELOW_BYTES = 16 * 1024 * 1024
ATTENTION_BYTES = 8 * 1024 * 1024  # of scores at a time; one tile of the published model takes half of it


class Buffers:
    """Maps that the blocks of one run write by turns: fresh ones would cost a page fault each 4 KB on a CPU.

    Elsewhere memory is cheap, and a CUDA graph must find its own where it was: there ops make their results themselves.
    """

    def __init__(self) -> None:
        self._memory: dict[str, torch.Tensor] = {}

    def take(self, name: str, channels: int, like: torch.Tensor) -> torch.Tensor | None:
        """A channels-last map (B, channels, H, W) for a map (B, C, H, W); the next call of the same name reuses it."""
        if like.device.type != "cpu":
            return None
        B, _, H, W = like.shape
        count = B * channels * H * W
        if name not in self._memory or self._memory[name].numel() < count:
            self._memory[name] = torch.empty(count, device=like.device, dtype=like.dtype)
        return self._memory[name][:count].view(B, H, W, channels).permute(0, 3, 1, 2)

    def trim(self) -> None:
        """Give large memory back; small maps are worth keeping for the next image."""
        for name in [n for n, memory in self._memory.items() if memory.nbytes > KEEP_BELOW_BYTES]:
            del self._memory[name]


class FusedConv(nn.Module):
    """A 3x3 convolution on the op `conv3x3`, with the SiLU that follows it."""

    def __init__(self, conv: nn.Conv2d, silu: bool = False) -> None:
        super().__init__()
        assert conv.bias is not None
        self.weights, self.stride, self.silu = prepare_conv3x3(conv.weight, conv.bias), conv.stride[0], silu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return conv3x3(x, self.weights, stride=self.stride, silu=self.silu)


class FusedConditionEncoder(nn.Module):
    """`ConditionEncoder`, each of its layers one op."""

    def __init__(self, encoder: ConditionEncoder) -> None:
        super().__init__()
        convolutions = (encoder.conv_in, *encoder.blocks)
        self.layers = nn.Sequential(*(FusedConv(conv, silu=True) for conv in convolutions), FusedConv(encoder.conv_out))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.layers(image).flatten(2).mT
        return tokens


class FusedResnetBlock(nn.Module):
    """`ResnetBlock` in two buffers and its input, which it overwrites with its output where widths are equal."""

    def __init__(self, block: ResnetBlock, maps: Buffers, statistics: GroupStatistics) -> None:
        super().__init__()
        self.statistics = statistics
        self.norm1, self.norm2, self.shortcut = block.norm1, block.norm2, block.nin_shortcut
        self.conv1, self.conv2 = FusedConv(block.conv1), FusedConv(block.conv2)
        self.maps = maps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (_, C_in), C_out = x.shape[:2], self.conv1.weights.weight.shape[0]
        h = self.statistics.normalise(self.norm1, x, self.maps.take("normalised", C_in, x))
        h = conv3x3(h, self.conv1.weights, out=self.maps.take("features", C_out, x))
        h = self.statistics.normalise(self.norm2, h, reused(h))
        shortcut = self.shortcut(x)
        return conv3x3(h, self.conv2.weights, shortcut, out=reused(shortcut))


class FusedNorm(nn.Module):
    """GroupNorm and SiLU over their own input, where nothing else reads it."""

    def __init__(self, norm: Norm, statistics: GroupStatistics) -> None:
        super().__init__()
        self.norm, self.statistics = norm, statistics

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.statistics.normalise(self.norm, x, reused(x))


def reused(x: torch.Tensor) -> torch.Tensor | None:
    """x as the place of a result that takes its place, where that saves memory's cost (see `Buffers`)."""
    return x if x.device.type == "cpu" else None


class PhaseUpsample(nn.Module):
    """`Upsample` with its 3x3 kernel folded into one 2x2 kernel an output phase."""

    def __init__(self, upsample: Upsample) -> None:
        super().__init__()
        assert upsample.conv.bias is not None
        self.weights = prepare_conv3x3(upsample.conv.weight, upsample.conv.bias)
        self.phases = phase_weights(upsample.conv.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return upsample_conv(x, self.phases, self.weights.bias, weights=self.weights)


class ChunkedAttention(nn.Module):
    """`AttentionBlock` some queries at a time: scores of a whole picture's latent grow with its pixels squared."""

    def __init__(self, block: AttentionBlock, statistics: GroupStatistics) -> None:
        super().__init__()
        self.statistics = statistics
        self.norm, self.qkv, self.proj_out = block.norm, block.qkv, block.proj_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, C, H, W = x.shape
        tokens = self.statistics.normalise(self.norm, x, silu=False).flatten(2).mT
        q, k, v = F.linear(tokens, self.qkv.weight[:, :, 0, 0], self.qkv.bias).chunk(3, dim=-1)
        rows = max(1, ATTENTION_BYTES // (B * H * W * x.element_size()))
        parts = [scores(part, k, C**-0.5).softmax(dim=-1) @ v for part in q.split(rows, dim=1)]
        attended = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        attended = F.linear(attended, self.proj_out.weight[:, :, 0, 0], self.proj_out.bias)
        return x + attended.mT.unflatten(2, (H, W))


def scores(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """scale q k^T (B, L, S), the scale as a part of the product."""
    return torch.baddbmm(q.new_empty(q.shape[0], q.shape[1], k.shape[1]), q, k.mT, beta=0, alpha=scale)


def fuse(module: nn.Module, maps: Buffers, statistics: GroupStatistics) -> nn.Module:
    """The module with every layer that a fused op computes replaced by it, in place."""
    if isinstance(module, ConditionEncoder):
        return FusedConditionEncoder(module)
    if isinstance(module, ResnetBlock):
        return FusedResnetBlock(module, maps, statistics)
    if isinstance(module, Upsample):
        return PhaseUpsample(module)
    if isinstance(module, Norm):  # the last one: the others belong to a block
        return FusedNorm(module, statistics)
    if isinstance(module, AttentionBlock):
        return ChunkedAttention(module, statistics)
    if isinstance(module, nn.Conv2d) and (module.kernel_size, module.stride) == ((3, 3), (1, 1)):
        return FusedConv(module)
    for name, child in module.named_children():
        setattr(module, name, fuse(child, maps, statistics))
    return module


class Convolutional(nn.Module):
    """Fused reference modules, run channels-last in one dtype; float32 in and out."""

    def __init__(self, *modules: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.maps, self.statistics, self.dtype = Buffers(), GroupStatistics(), dtype
        self.layers = nn.Sequential(*(fuse(module, self.maps, self.statistics) for module in modules))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.statistics.begin()
        result: torch.Tensor = self.layers(x.to(self.dtype).contiguous(memory_format=torch.channels_last))
        self.maps.trim()
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
