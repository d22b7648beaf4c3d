"""Parameters and multiplications of each peer, counted on the meta device, and held to the table in peers.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.diffusion import networks
from benchmarks.diffusion.methods import Pictures
from benchmarks.diffusion.peers import PEERS, Peer
from benchmarks.diffusion.sizes import PUBLISHED, SCALE, Sizes

PARAMETER_TOLERANCE = 1e-3
MAC_TOLERANCE = 5e-3

# Millions of parameters that the published files and papers give for what the peers are made of.
PARTS = {
    "UNet of Stable Diffusion 2.1": (networks.unet, 865.91),
    "its autoencoder": (networks.vae, 83.65),
    "Stable Diffusion 3 medium": (networks.sd3_transformer, 2028.33),
    "Swin UNet of ResShift": (networks.swin_unet, 118.59),
    "RRDBNet x4plus": (networks.rrdb, 16.70),
}


class Count(NamedTuple):
    parameters: int
    macs: float  # multiply-adds of one picture, attention's products included


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def flops_of(method: nn.Module, side: int) -> int:
    """Of one call with a picture of `side` pixels, on the meta device."""
    low = torch.empty(1, 3, side // SCALE, side // SCALE, device="meta")
    pictures = Pictures(low, torch.empty(1, 3, side, side, device="meta"))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        out = method(pictures)
    expected = (1, 3, side, side)
    if tuple(out.shape) != expected:
        raise ValueError(f"{type(method).__name__}: the output must be {expected}, got {tuple(out.shape)}")
    return int(counter.get_total_flops())


def count(peer: Peer, sizes: Sizes) -> Count:
    """What the peer is and does at these sizes. Steps are alike: two calls tell the rest."""
    from dataclasses import replace

    def built(steps: int | None) -> nn.Module:
        with torch.device("meta"):
            return peer.build(replace(sizes, most_steps=steps))

    steps = sizes.steps(peer.steps)
    if steps <= 2:
        method = built(sizes.most_steps)
        return Count(parameters_of(method), flops_of(method, sizes.side) / 2)
    one, two = (flops_of(built(n), sizes.side) for n in (1, 2))
    return Count(parameters_of(built(1)), (one + (steps - 1) * (two - one)) / 2)


def differences(peer: Peer, found: Count) -> list[str]:
    """Where a peer at published sizes is not what the table says."""
    pairs = (
        ("parameters", "10^6", peer.parameters, found.parameters / 1e6, PARAMETER_TOLERANCE),
        ("multiply-adds", "10^9", peer.macs, found.macs / 1e9, MAC_TOLERANCE),
    )
    return [
        f"{peer.name}: {what} must be {expected:g} {unit} to {tolerance:.1%}, got {got:.2f}"
        for what, unit, expected, got, tolerance in pairs
        if abs(got - expected) > tolerance * max(expected, 1e-3)
    ]


def check(names: tuple[str, ...] | None = None) -> tuple[dict[str, Any], list[str]]:
    """Counts of the peers at published sizes, and what is wrong with them."""
    counts, wrong = {}, list[str]()
    for peer in PEERS.values():
        if names is None or peer.name in names:
            found = count(peer, PUBLISHED)
            counts[peer.name] = {"parameters": found.parameters, "macs": found.macs}
            wrong += differences(peer, found)
    for title, (build, expected) in PARTS.items():
        with torch.device("meta"):
            got = parameters_of(build(PUBLISHED)) / 1e6
        if abs(got - expected) > PARAMETER_TOLERANCE * expected:
            wrong.append(f"{title}: parameters must be {expected} 10^6, got {got:.2f}")
    return counts, wrong
