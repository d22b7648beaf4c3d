"""philox_normal: Philox4x32-10 words and their mapping to normals, uniforms and Gumbel noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.harness import DEVICE, each_backend, raises, run_case
from tests.numerics import assert_accurate
from varsr_engine.kernels import philox_normal
from varsr_engine.kernels.philox.reference import (
    MASK,
    gumbel,
    philox4x32,
    philox_words,
    to_open_uniform,
    to_uniform,
)

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on this platform
    triton = None

backends = each_backend("philox_normal")
needs_triton = pytest.mark.skipif(triton is None, reason="needs Triton")

BIG_SEEDS = (0, 1, 2**31, 2**32 - 1, 2**32, 0x0123456789ABCDEF, 2**63 - 1)


def int64(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=DEVICE)


def normals(seeds: Tensor, positions: Tensor, count: int, backend: str, step: int = 3, stream: int = 1) -> Tensor:
    """philox_normal, called as `run_case` calls."""
    result: Tensor = run_case(philox_normal, (seeds, positions, count), {"step": step, "stream": stream}, backend)
    return result


def python_philox(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    """One counter in Python's unbounded integers, as Salmon et al. print it."""
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(10):
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (second >> 32) ^ b ^ k0, second & MASK, (first >> 32) ^ d ^ k1, first & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [a, b, c, d]


def box_muller(words: Tensor) -> Tensor:
    """float64 normals of words, pair by pair, from the float32 uniforms."""
    uniform = to_uniform(words).double()
    first, second = uniform[..., 0::2].clamp_min(1e-7), uniform[..., 1::2]
    radius, angle = (-2 * first.log()).sqrt(), 2 * math.pi * second
    return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1).flatten(-2)


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([MASK] * 4, [MASK] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_known_answers_of_random123(counter: list[int], key: list[int], expected: list[int]) -> None:
    """The vectors of philox4x32-10 in Random123's kat_vectors."""
    words = philox4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert [int(w) for w in words] == expected
    assert python_philox(tuple(counter), tuple(key)) == expected


def test_words_of_the_counter_layout() -> None:
    """Counter (element // 4, position, step, stream), key the seed with its low word first."""
    positions = (0, 7, 5 << 16 | 9, MASK)
    words = philox_words(int64(*BIG_SEEDS), int64(*positions), 10, 4, 2)
    assert words.shape == (len(BIG_SEEDS), len(positions), 12)
    for b, seed in enumerate(BIG_SEEDS):
        for n, position in enumerate(positions):
            for group in range(3):
                expected = python_philox((group, position, 4, 2), (seed & MASK, seed >> 32))
                assert words[b, n, 4 * group : 4 * group + 4].tolist() == expected


def test_seeds_that_differ_in_the_high_word_only() -> None:
    words = philox_words(int64(5, 5 | 1 << 32, 5 | 1 << 62), int64(0), 64, 0, 0)
    assert len(words.flatten().unique()) == words.numel()


if triton is not None:

    @triton.jit
    def philox_kernel(words_ptr, counters_ptr, seed, N: tl.constexpr):
        offs = tl.arange(0, N)
        c0 = tl.load(counters_ptr + offs).to(tl.uint32)
        c1 = tl.load(counters_ptr + N + offs).to(tl.uint32)
        c2 = tl.load(counters_ptr + 2 * N + offs).to(tl.uint32)
        c3 = tl.load(counters_ptr + 3 * N + offs).to(tl.uint32)
        w0, w1, w2, w3 = tl.philox(seed, c0, c1, c2, c3)
        tl.store(words_ptr + offs, w0.to(tl.int64))
        tl.store(words_ptr + N + offs, w1.to(tl.int64))
        tl.store(words_ptr + 2 * N + offs, w2.to(tl.int64))
        tl.store(words_ptr + 3 * N + offs, w3.to(tl.int64))

    @triton.jit
    def offset_kernel(words_ptr, normals_ptr, offsets_ptr, seed, N: tl.constexpr):
        offs = tl.arange(0, N)
        offset = tl.load(offsets_ptr + offs)
        w0, w1, w2, w3 = tl.randint4x(seed, offset)
        tl.store(words_ptr + 4 * offs, w0.to(tl.uint32, bitcast=True).to(tl.int64))
        tl.store(words_ptr + 4 * offs + 1, w1.to(tl.uint32, bitcast=True).to(tl.int64))
        tl.store(words_ptr + 4 * offs + 2, w2.to(tl.uint32, bitcast=True).to(tl.int64))
        tl.store(words_ptr + 4 * offs + 3, w3.to(tl.uint32, bitcast=True).to(tl.int64))
        n0, n1, n2, n3 = tl.randn4x(seed, offset)
        tl.store(normals_ptr + 4 * offs, n0)
        tl.store(normals_ptr + 4 * offs + 1, n1)
        tl.store(normals_ptr + 4 * offs + 2, n2)
        tl.store(normals_ptr + 4 * offs + 3, n3)


def triton_by_offset(seed: int, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Words and normals, four an offset, of tl.randint4x and tl.randn4x."""
    N = offsets.numel()
    words = torch.zeros(4 * N, dtype=torch.int64, device=DEVICE)
    values = torch.zeros(4 * N, dtype=torch.float32, device=DEVICE)
    offset_kernel[(1,)](words, values, offsets, seed, N)
    return words, values


@needs_triton
@pytest.mark.parametrize("seed", BIG_SEEDS)
def test_words_equal_tl_philox(seed: int) -> None:
    N = 32
    counters = torch.randint(2**32, (4, N)).to(DEVICE)
    counters[:, 0], counters[:, 1] = 0, MASK
    words = torch.zeros_like(counters)
    philox_kernel[(1,)](words, counters, seed, N)
    expected = philox4x32(tuple(counters), (int64(seed & MASK), int64(seed >> 32)))
    assert torch.equal(words, torch.stack(expected))


@needs_triton
@pytest.mark.parametrize("seed", BIG_SEEDS)
def test_equals_tl_randint4x_and_randn4x(seed: int) -> None:
    """Step 0 of stream 0 at position 0 is Triton's stream, counted by offset."""
    N = 16
    words, values = triton_by_offset(seed, torch.arange(N, device=DEVICE))
    assert torch.equal(words, philox_words(int64(seed), int64(0), 4 * N, 0, 0)[0, 0])
    mine = normals(int64(seed), int64(0), 4 * N, "torch", step=0, stream=0)[0, 0]
    assert_accurate(mine, values, box_muller(words))
    assert_accurate(values, mine, box_muller(words))


@needs_triton
def test_position_is_the_high_word_of_tl_randint4x() -> None:
    offsets = int64(*(position << 32 | group for position in (0, 3, 2**31 - 1, 2 << 16 | 5) for group in range(4)))
    words, _ = triton_by_offset(42, offsets)
    expected = philox_words(int64(42), int64(0, 3, 2**31 - 1, 2 << 16 | 5), 16, 0, 0)
    assert torch.equal(words, expected.flatten())


# --- uniforms and Gumbel noise ---------------------------------------------------------------------------------------


def test_uniforms_at_the_edges() -> None:
    words = int64(0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
    uniform = to_uniform(words).tolist()
    assert uniform[0] == uniform[5] == 0.0
    assert uniform[1] == uniform[4] == pytest.approx(2.0**-31)
    assert uniform[2] == uniform[3] == pytest.approx(1.0, abs=2e-7)
    assert min(uniform) >= 0 and max(uniform) <= 1
    open_uniform = to_open_uniform(words)
    assert open_uniform[0] == 2.0**-24 and open_uniform[5] == 1 - 2.0**-24
    assert (-torch.log(-torch.log(open_uniform))).isfinite().all()


def test_gumbel_moments() -> None:
    """Mean Euler's constant, variance pi^2 / 6, four standard errors."""
    noise = gumbel(int64(0, 1), torch.arange(64, device=DEVICE), 512, 0, 2).double()
    n = noise.numel()
    assert abs(noise.mean() - 0.5772156649) <= 4 * math.sqrt(math.pi**2 / 6 / n)
    assert abs(noise.var() - math.pi**2 / 6) <= 4 * math.sqrt(4.4 * (math.pi**2 / 6) ** 2 / n)  # kurtosis 5.4


# --- normals ---------------------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize(
    ("seeds", "positions", "count"),
    [
        pytest.param((0, 7), range(9), 32, id="varsr"),
        pytest.param(BIG_SEEDS, (0, 3, MASK, 5 << 16 | 7), 13, id="odd"),
        pytest.param((11,), range(64), 256, id="tails"),
        pytest.param((1,), (0,), 1, id="one"),
        pytest.param((), (0, 1), 8, id="no_rows"),
        pytest.param((1, 2), (), 8, id="no_positions"),
        pytest.param((1,), (0, 1), 0, id="no_elements"),
    ],
)
def test_normals_are_those_of_the_words(backend: str, seeds: Any, positions: Any, count: int) -> None:
    seeds, positions = int64(*seeds), int64(*positions)
    words = philox_words(seeds, positions, count, 3, 1)
    actual = normals(seeds, positions, count, backend)
    assert actual.dtype == torch.float32
    eager = normals(seeds, positions, count, "torch")
    assert_accurate(actual, eager, box_muller(words)[..., :count])


@backends
def test_moments(backend: str) -> None:
    """Mean, variance, skewness and kurtosis of 65536 values within four standard errors; no lag-one correlation."""
    x = normals(int64(11, 12), torch.arange(256, device=DEVICE), 128, backend).double().flatten()
    n = x.numel()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - expected) <= 4 * math.sqrt(variance / n), f"moment {power}"
    assert abs((x[1:] * x[:-1]).mean()) <= 4 / math.sqrt(n)
    assert x.abs().max() < 6


@backends
def test_quantiles(backend: str) -> None:
    """Kolmogorov's distance to the normal distribution, at the level 0.001."""
    x = normals(int64(5), torch.arange(128, device=DEVICE), 128, backend).double().flatten().sort().values
    n = x.numel()
    steps = torch.arange(n + 1, dtype=torch.float64, device=x.device) / n
    cdf = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    assert max((cdf - steps[:-1]).max(), (steps[1:] - cdf).max()) <= 1.95 / math.sqrt(n)


@backends
def test_a_row_does_not_depend_on_the_batch(backend: str) -> None:
    positions = torch.arange(6, device=DEVICE)
    batch = normals(int64(3, 1, 4, 1), positions, 20, backend)
    for i, seed in enumerate((3, 1, 4, 1)):
        assert torch.equal(batch[i : i + 1], normals(int64(seed), positions, 20, backend))
    assert torch.equal(batch[1], batch[3])


@backends
def test_a_position_does_not_depend_on_the_map(backend: str) -> None:
    """A tile draws what the whole map draws at its place, and fewer elements are a prefix of more."""
    whole = normals(int64(9), torch.arange(12, device=DEVICE), 20, backend)
    assert torch.equal(whole[:, [7, 2]], normals(int64(9), int64(7, 2), 20, backend))
    assert torch.equal(whole[..., :7], normals(int64(9), torch.arange(12, device=DEVICE), 7, backend))


@backends
def test_seeds_steps_streams_and_positions_differ(backend: str) -> None:
    base = dict(seeds=int64(1), positions=int64(0), count=2048, step=1, stream=1)
    changes = [
        {},
        {"seeds": int64(2)},
        {"seeds": int64(1 | 1 << 40)},
        {"positions": int64(1)},
        {"step": 2},
        {"stream": 2},
    ]
    rows = torch.cat([normals(**(base | change), backend=backend).flatten(1) for change in changes]).double()
    correlation = torch.corrcoef(rows) - torch.eye(len(changes), dtype=torch.float64, device=DEVICE)
    assert correlation.abs().max() <= 4 / math.sqrt(2048)


@backends
def test_non_contiguous(backend: str) -> None:
    seeds, positions = int64(3, 0, 1, 0, 4, 0)[::2], torch.arange(10, device=DEVICE)[1::3]
    expected = normals(seeds.clone(), positions.clone(), 9, backend)
    assert torch.equal(normals(seeds, positions, 9, backend), expected)


@backends
def test_positions_a_row(backend: str) -> None:
    """Rows of a batch may lie at different places: each is as if it were alone."""
    seeds, positions = int64(3, 1, 3), torch.arange(15, device=DEVICE).view(3, 5) << 16
    together = normals(seeds, positions, 6, backend)
    for b in range(3):
        assert torch.equal(together[b : b + 1], normals(seeds[b : b + 1], positions[b], 6, backend))


@backends
def test_times_a_standard_deviation_an_image(backend: str) -> None:
    seeds, positions, std = torch.arange(3), torch.arange(5), torch.tensor([0.0, 1.0, 2.5])

    def scaled(*args: Any, backend: str) -> Any:
        return philox_normal(*args, 6, step=1, stream=2, std=std.to(DEVICE), backend=backend)

    def plain(*args: Any, backend: str) -> Any:
        return philox_normal(*args, 6, step=1, stream=2, backend=backend)

    args = (seeds.to(DEVICE), positions.to(DEVICE))
    expected = run_case(plain, args, None, backend) * std.to(DEVICE)[:, None, None]
    assert torch.equal(run_case(scaled, args, None, backend), expected)


@backends
@pytest.mark.parametrize("steps", [range(3, 3), range(0, 1), range(2, 7)], ids=str)
def test_a_range_of_steps(backend: str, steps: range) -> None:
    """The noise of several steps at once is that of each by itself."""
    seeds, positions, std = int64(3, 2**62, 5), torch.arange(9, device=DEVICE), torch.tensor([0.5, 1.0, 2.0]).to(DEVICE)
    settings: dict[str, Any] = {"stream": 1, "std": std}
    together = run_case(philox_normal, (seeds, positions, 6), settings | {"step": steps}, backend)
    assert together.shape == (len(steps), 3, 9, 6)
    for i, step in enumerate(steps):
        alone = run_case(philox_normal, (seeds, positions, 6), settings | {"step": step}, backend)
        assert torch.equal(together[i], alone)


def test_bad_arguments() -> None:
    with raises(ValueError, "philox_normal: step must be a number or a range of step 1, got range(0, 4, 2)"):
        philox_normal(torch.arange(2), torch.arange(3), 4, step=range(0, 4, 2), stream=0)
    with raises(ValueError, "philox_normal: seeds must be (B,), got shape (1, 2)"):
        philox_normal(torch.zeros(1, 2, dtype=torch.int64), torch.arange(3), 4, step=0, stream=0)
    with raises(ValueError, "philox_normal: positions must be (N,) or (B, N), got shape ()"):
        philox_normal(torch.arange(2), torch.tensor(3), 4, step=0, stream=0)
    with raises(ValueError, "philox_normal: positions must be (B, N) = (2, 3), got (1, 3)"):
        philox_normal(torch.arange(2), torch.arange(3)[None], 4, step=0, stream=0)
    with raises(TypeError, "philox_normal: seeds must be torch.int64, got torch.int32"):
        philox_normal(torch.arange(2, dtype=torch.int32), torch.arange(3), 4, step=0, stream=0)
    with raises(TypeError, "philox_normal: positions must be torch.int64, got torch.float32"):
        philox_normal(torch.arange(2), torch.zeros(3), 4, step=0, stream=0)
