"""The three levels at which a peer runs. The engine is its own at each of them.

L0, as shipped: eager, 16-bit weights, torch's attention as diffusers calls it.
L1: and convolutions channels-last, the projections of queries, keys and values one product.
L2: and torch.compile, and on a GPU one CUDA graph over all steps. On a CPU there are no graphs: torch.compile alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.diffusion.methods import Method, Pictures
from benchmarks.published_style import PublishedStyle

WORDS = {0: "L0, as shipped", 1: "L1, channels-last and fused", 2: "L2, compiled"}
SHAPES = 64  # compilations of one function that torch may keep


def channels_last(module: nn.Module) -> None:
    module.to(memory_format=torch.channels_last)


def raise_level(method: Method, level: int, mode: str) -> None:
    """Bring a method at the level before to this one, in place. mode: of torch.compile."""
    if level == 1:
        channels_last(method)
        for part in method.children():
            if hasattr(part, "fuse_qkv_projections"):
                part.fuse_qkv_projections()
    elif level == 2:
        for part in method.heavy():
            part.compile(mode=mode, dynamic=False)


def raise_published(published: PublishedStyle, level: int) -> None:
    """The same for VARSR run as published. Compiled block by block with dynamic shapes; its sampler asks the host, so
    that no CUDA graph can hold it."""
    net, autoencoder = published.transformer, published.autoencoder
    if level == 1:
        channels_last(autoencoder)
        channels_last(net)
    elif level == 2:
        for name in ("recompile_limit", "cache_size_limit"):  # the newer and the older name of one setting
            if hasattr(torch._dynamo.config, name):
                setattr(torch._dynamo.config, name, SHAPES)
        for part in (*net.blocks, net.con_embedding, net.diffloss["net"], autoencoder.decoder):
            part.compile(dynamic=True)


class Captured:
    """A method's whole call, all steps, as one CUDA graph. Inputs are copied into it, outputs are its own tensor."""

    def __init__(self, method: Method, pictures: Pictures) -> None:
        """Captures. The method has run with pictures of this shape before, on another stream than the default."""
        self._pictures = Pictures(*(part.clone() for part in pictures))
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._out = method(self._pictures)

    def __call__(self, pictures: Pictures) -> Tensor:
        for mine, given in zip(self._pictures, pictures, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._out
