"""Philox4x32-10 in plain torch integers: the engine's only source of randomness.

Counter-based: a value is a pure function of (seed, stream, step, position, element), so it does not depend on the
batch, the device or the order of evaluation. The words, and their mapping to floats, are those of Triton's
`tl.philox` and `tl.randn4x`. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math

import torch

from varsr_engine.kernels.spec import Cost

Words = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

MASK = 0xFFFFFFFF
ROUND_A, ROUND_B = 0xD2511F53, 0xCD9E8D57
KEY_A, KEY_B = 0x9E3779B9, 0xBB67AE85


def _multiply(constant: int, word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of a 32 x 32 bit product; int64 would overflow, so the constant is split in halves."""
    low, high = word * (constant & 0xFFFF), word * (constant >> 16)
    return (high + (low >> 16)) >> 16, ((high << 16) + low) & MASK


def philox4x32(counter: Words, key: tuple[torch.Tensor, torch.Tensor], rounds: int = 10) -> Words:
    """Four random 32-bit words for each counter, as int64 in [0, 2^32). All arguments broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        high_a, low_a = _multiply(ROUND_A, c0)
        high_b, low_b = _multiply(ROUND_B, c2)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = (k0 + KEY_A) & MASK, (k1 + KEY_B) & MASK
    return c0, c1, c2, c3


def philox_words(seeds: torch.Tensor, positions: torch.Tensor, count: int, step: int, stream: int) -> torch.Tensor:
    """Words for elements 0..count-1 of every position, (N,) or (B, N): (B, N, 4 * ceil(count / 4)) int64.

    The counter is (element // 4, position, step, stream) and the key is the 64-bit seed, low word first.
    """
    device = seeds.device
    group = torch.arange(-(-count // 4), device=device)[None, None, :]
    seeds = seeds[:, None, None]
    places = (positions if positions.ndim == 2 else positions[None])[..., None]
    counter = (group, places, torch.tensor(step, device=device), torch.tensor(stream, device=device))
    words = philox4x32(counter, (seeds & MASK, (seeds >> 32) & MASK))
    return torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(-2)


def to_uniform(words: torch.Tensor) -> torch.Tensor:
    """float32 in [0, 1], as Triton maps a word: the sign bit mirrors it, then it is scaled by 2^-31."""
    signed = torch.where(words >= 2**31, 2**32 - 1 - words, words)
    return signed.to(torch.float32) * 4.6566127342e-10


def to_open_uniform(words: torch.Tensor) -> torch.Tensor:
    """float32 strictly between 0 and 1: the upper 23 bits, centred. Safe to take logarithms of, from both ends."""
    return ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23


def philox_normal_reference(
    seeds: torch.Tensor,
    positions: torch.Tensor,
    count: int,
    steps: range,
    stream: int,
    std: torch.Tensor | None = None,
) -> torch.Tensor:
    """(steps, B, N, count)."""
    noise = [_normal(seeds, positions, count, step, stream) for step in steps]
    if not noise:
        return torch.empty(0, seeds.shape[0], positions.shape[-1], count, device=seeds.device)
    normal = torch.stack(noise)
    return normal if std is None else normal * std[:, None, None]


def _normal(seeds: torch.Tensor, positions: torch.Tensor, count: int, step: int, stream: int) -> torch.Tensor:
    uniform = to_uniform(philox_words(seeds, positions, count, step, stream))
    first, second = uniform[..., 0::2].clamp_min(1e-7), uniform[..., 1::2]
    radius, angle = torch.sqrt(-2.0 * torch.log(first)), 2.0 * math.pi * second
    normal = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return normal.flatten(-2)[..., :count]


def gumbel(seeds: torch.Tensor, positions: torch.Tensor, count: int, step: int, stream: int) -> torch.Tensor:
    """Standard Gumbel noise (B, N, count) float32, for sampling by argmax(logits + noise)."""
    words = philox_words(seeds, positions, count, step, stream)[..., :count]
    return -torch.log(-torch.log(to_open_uniform(words)))


def philox_normal_cost(B: int, N: int, count: int) -> Cost:
    return Cost(flops=0, bytes=4 * B * N * count)
