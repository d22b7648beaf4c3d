"""guided_sample: guidance, head, argmax or filtered sampling."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.harness import (
    DEVICE,
    ROUNDINGS,
    check,
    each_backend,
    each_dtype,
    each_layout,
    each_size,
    normal,
    raises,
    run_case,
)
from tests.kernels.test_philox import python_philox
from varsr_engine.kernels import guided_sample
from varsr_engine.kernels.guided_sample import Sampling
from varsr_engine.kernels.guided_sample.reference import filter_logits
from varsr_engine.kernels.philox.reference import MASK

backends = each_backend("guided_sample")
Arguments = tuple[Any, ...]


def inputs(B: int, L: int, C: int, V: int, dtype: torch.dtype) -> Arguments:
    """cond, uncond, ratio, weight, bias; another ratio for each image."""
    cond = normal(B, L, C)
    uncond = cond + normal(B, L, C, std=0.3)
    ratio = torch.linspace(6, 0.5, max(B, 1), device=DEVICE)[:B]
    return cond, uncond, ratio, normal(V, C, dtype=dtype, std=C**-0.5), normal(V, dtype=dtype, std=0.1)


def for_logits(logits: Tensor) -> Arguments:
    """Arguments whose logits (B, L, V) are exactly these: an identity for a head."""
    B, _, V = logits.shape
    logits = logits.to(DEVICE, torch.float32).contiguous()
    return logits, None, torch.zeros(B, device=DEVICE), torch.eye(V, device=DEVICE), torch.zeros(V, device=DEVICE)


def sampling(
    B: int,
    L: int,
    *,
    top_k: int | list[int] = 0,
    top_p: float | list[float] = 1.0,
    temperature: float | list[float] = 1.0,
    seeds: list[int] | None = None,
    first: int = 0,
    step: int = 3,
    stream: int = 2,
) -> Sampling:
    """One value for all images, or a list of one an image."""

    def values(value: Any, dtype: torch.dtype) -> Tensor:
        return torch.tensor(value if isinstance(value, list) else [value] * B, dtype=dtype, device=DEVICE)

    return Sampling(
        top_k=values(top_k, torch.int64),
        top_p=values(top_p, torch.float32),
        temperature=values(temperature, torch.float32),
        seeds=values(seeds or list(range(B)), torch.int64),
        positions=torch.arange(first, first + L, device=DEVICE),
        step=step,
        stream=stream,
    )


def row_sampling(s: Sampling, b: int) -> Sampling:
    """The settings of one image."""
    return s._replace(**{name: getattr(s, name)[b : b + 1] for name in ("top_k", "top_p", "temperature", "seeds")})


def draw(args: Arguments, s: Sampling | None, backend: str) -> Tensor:
    tokens: Tensor = run_case(guided_sample, (*args, s), None, backend)[0]
    return tokens


def allowed(logits: list[float], top_k: int, top_p: float, temperature: float = 1.0) -> dict[int, float]:
    """Token: probability, of those that survive top-k, then top-p. Written for single rows, without ties at top-p."""
    scores = {i: v / temperature for i, v in enumerate(logits)}
    if top_k > 0:
        threshold = sorted(scores.values(), reverse=True)[min(top_k, len(logits)) - 1]
        scores = {i: v for i, v in scores.items() if v >= threshold}
    best = max(scores.values())
    weights = {i: math.exp(v - best) for i, v in scores.items()}
    mass, kept = 0.0, {}
    for i in sorted(weights, key=weights.__getitem__, reverse=True):
        if mass > top_p * sum(weights.values()) and top_p < 1:
            break
        kept[i] = weights[i]
        mass += weights[i]
    return {i: w / sum(kept.values()) for i, w in kept.items()}


def log_of(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


# --- guidance and logits ---------------------------------------------------------------------------------------------


def logits_of(*args: Any, backend: str) -> Tensor:
    logits: Tensor = guided_sample(*args, backend=backend)[1]
    return logits


def formula(
    cond: Tensor, uncond: Tensor | None, ratio: Tensor, weight: Tensor, bias: Tensor, sampling: None = None
) -> Tensor:
    """Both branches through the head, then the guidance: the order of the specification."""
    head = [torch.einsum("blc,vc->blv", h, weight) + bias for h in (cond, cond if uncond is None else uncond)]
    t = ratio[:, None, None]
    return (1 + t) * head[0] - t * head[1]


@backends
@each_dtype()
@each_size(
    varsr=(2, 9, 48, 128), odd=(3, 5, 37, 101), one=(1, 1, 1, 16), empty=(0, 4, 8, 16), full=(1, 1024, 1536, 4096)
)
def test_guided_logits(backend: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    args = inputs(*size, dtype)
    logits = check(logits_of, args, backend=backend, formula=formula)
    tokens, same_logits = run_case(guided_sample, args, None, backend)
    assert logits.dtype == torch.float32 and tokens.dtype == torch.int64
    assert tokens.shape == size[:2]
    assert torch.equal(logits, same_logits)
    assert torch.equal(tokens, logits.argmax(-1))


@backends
@each_dtype()
def test_without_the_other_branch(backend: str, dtype: torch.dtype) -> None:
    """uncond None is ratio 0, and the ratio is not read."""
    cond, uncond, ratio, weight, bias = inputs(2, 5, 24, 40, dtype)
    check(logits_of, (cond, None, torch.zeros_like(ratio), weight, bias), backend=backend, formula=formula)
    alone = run_case(guided_sample, (cond, None, torch.full_like(ratio, math.nan), weight, bias), None, backend)
    zero = run_case(guided_sample, (cond, uncond, torch.zeros_like(ratio), weight, bias), None, backend)
    assert torch.equal(alone[0], zero[0]) and torch.equal(alone[1], zero[1])


@backends
def test_sampling_returns_the_unfiltered_logits(backend: str) -> None:
    args = inputs(2, 5, 24, 40, torch.float32)
    s = sampling(2, 5, top_k=3, temperature=0.5)
    assert torch.equal(run_case(guided_sample, (*args, s), None, backend)[1], run_case(logits_of, args, None, backend))


@backends
@each_dtype()
def test_strong_guidance(backend: str, dtype: torch.dtype) -> None:
    """A scale of 100 on two branches that nearly agree: their difference has to be taken in float32."""
    cond, _, ratio, weight, bias = inputs(2, 4, 32, 48, dtype)
    args = (cond, cond + normal(2, 4, 32, std=0.01), torch.full_like(ratio, 100.0), weight, bias)
    roundings = ROUNDINGS * (100 if dtype == torch.float32 else 1)
    check(logits_of, args, backend=backend, formula=formula, roundings=roundings)


@backends
@each_layout
@each_dtype(torch.float32, torch.float16)
def test_non_contiguous(backend: str, layout: Any, dtype: torch.dtype) -> None:
    check(logits_of, tuple(map(layout, inputs(2, 6, 32, 48, dtype))), backend=backend, formula=formula)


# --- argmax ----------------------------------------------------------------------------------------------------------


@backends
def test_argmax_takes_the_lowest_index_on_ties(backend: str) -> None:
    logits = torch.zeros(1, 5, 70)
    logits[0, 1, [3, 40, 69]] = 2.0
    logits[0, 2, [69, 68]] = 1.0
    logits[0, 3, [0, 69]] = 5.0
    logits[0, 4] = -1e30
    assert draw(for_logits(logits), None, backend).tolist() == [[0, 3, 68, 0, 0]]


@backends
def test_top_k_1_is_the_argmax(backend: str) -> None:
    args = inputs(2, 9, 24, 50, torch.float32)
    greedy = draw(args, None, backend)
    assert torch.equal(draw(args, sampling(2, 9, top_k=1, top_p=0.75), backend), greedy)
    assert torch.equal(draw(args, sampling(2, 9, top_p=1e-6), backend), greedy)
    assert torch.equal(draw(args, sampling(2, 9, temperature=1e-6), backend), greedy)


@backends
def test_mixed_batch(backend: str) -> None:
    """Greedy rows take the argmax, sampled rows what they draw alone."""
    args = for_logits(normal(4, 40, 16).cpu())
    s = sampling(4, 40, top_k=[1, 0, 1, 5], top_p=[0.75, 1.0, 1.0, 0.9], temperature=[1.0, 2.0, 3.0, 1.0])
    tokens, greedy = draw(args, s, backend), draw(args, None, backend)
    assert torch.equal(tokens[0], greedy[0]) and torch.equal(tokens[2], greedy[2])
    assert (tokens[1] != greedy[1]).any() and (tokens[3] != greedy[3]).any()


@backends
def test_top_k_1_takes_the_lowest_index_on_ties(backend: str) -> None:
    """Alone an image with top_k = 1 takes the argmax; in a mixed batch it must take the same token."""
    logits = torch.zeros(2, 64, 8)
    logits[:, :, [2, 5]] = 3.0
    tokens = draw(for_logits(logits), sampling(2, 64, top_k=[1, 0]), backend)
    assert (tokens[0] == 2).all()


# --- which tokens survive --------------------------------------------------------------------------------------------

SKEWED = log_of(0.5, 0.3, 0.15, 0.05)


@pytest.mark.parametrize(
    ("logits", "top_k", "top_p", "temperature", "kept"),
    [
        pytest.param(SKEWED, 0, 1.0, 1.0, {0, 1, 2, 3}, id="all"),
        pytest.param(SKEWED, 2, 1.0, 1.0, {0, 1}, id="top_k"),
        pytest.param(SKEWED, 9, 1.0, 1.0, {0, 1, 2, 3}, id="top_k_above_V"),
        pytest.param([1.0, 3.0, 1.0, 2.0, 0.0], 3, 1.0, 1.0, {0, 1, 2, 3}, id="top_k_keeps_ties"),
        pytest.param(SKEWED, 0, 0.75, 1.0, {0, 1}, id="top_p"),
        pytest.param(SKEWED, 0, 0.81, 1.0, {0, 1, 2}, id="top_p_one_more"),
        pytest.param(SKEWED, 0, 0.45, 1.0, {0}, id="top_p_best_alone"),
        pytest.param(SKEWED, 0, 0.01, 1.0, {0}, id="top_p_best_always_stays"),
        pytest.param(SKEWED, 0, 0.96, 1.0, {0, 1, 2, 3}, id="top_p_nearly_all"),
        pytest.param(SKEWED[::-1], 0, 0.75, 1.0, {2, 3}, id="any_order"),
        pytest.param(SKEWED, 2, 0.61, 1.0, {0}, id="top_p_of_what_top_k_left"),  # 0.5 / 0.8 = 0.625 > 0.61
        pytest.param(SKEWED, 0, 0.75, 0.25, {0}, id="temperature_first"),  # 0.5^4 / (0.5^4 + 0.3^4 + ...) = 0.88
        pytest.param(SKEWED, 0, 0.75, 100.0, {0, 1, 2}, id="high_temperature"),
    ],
)
def test_filter(logits: list[float], top_k: int, top_p: float, temperature: float, kept: set[int]) -> None:
    """Hand-made distributions; filtered logits are otherwise only divided by the temperature."""
    settings = (torch.tensor([top_k]), torch.tensor([top_p]), torch.tensor([temperature]))
    filtered = filter_logits(torch.tensor(logits)[None, None], *settings)[0, 0]
    assert {i for i, v in enumerate(filtered.tolist()) if v > -math.inf} == kept
    assert set(allowed(logits, top_k, top_p, temperature)) == kept
    for i in kept:
        assert filtered[i] == torch.tensor(logits[i]) / temperature


def test_filter_with_settings_a_row() -> None:
    """Each image's settings apply to all of its tokens, and to no other image."""
    logits = normal(3, 7, 33).cpu()
    top_k, top_p, temperature = torch.tensor([4, 0, 10]), torch.tensor([1.0, 0.6, 0.8]), torch.tensor([1.0, 0.5, 2.0])
    filtered = filter_logits(logits, top_k, top_p, temperature)
    for b in range(3):
        for n in range(7):
            expected = allowed(logits[b, n].tolist(), int(top_k[b]), float(top_p[b]), float(temperature[b]))
            assert set(filtered[b, n].isfinite().nonzero().flatten().tolist()) == set(expected)


@backends
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.75), (3, 0.9)])
def test_drawn_tokens_are_those_that_survive(backend: str, top_k: int, top_p: float) -> None:
    logits = [0.3, 1.2, 0.9, -0.5, 0.9, 0.1]
    tokens = draw(
        for_logits(torch.tensor(logits).expand(1, 128, 6)), sampling(1, 128, top_k=top_k, top_p=top_p), backend
    )
    assert set(tokens.flatten().tolist()) == set(allowed(logits, top_k, top_p))


@backends
def test_ties_with_the_k_th_are_drawn_too(backend: str) -> None:
    logits = torch.tensor([1.0, 3.0, 1.0, 2.0, 0.0]).expand(1, 256, 5)
    tokens = draw(for_logits(logits), sampling(1, 256, top_k=3), backend)
    assert set(tokens.flatten().tolist()) == {0, 1, 2, 3}


# --- which of them is drawn ------------------------------------------------------------------------------------------


@backends
@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"), [(0, 1.0, 1.0), (20, 0.75, 1.0), (7, 1.0, 1.7), (0, 0.9, 0.6)]
)
def test_token_is_the_largest_of_logits_plus_gumbel_noise(
    backend: str, top_k: int, top_p: float, temperature: float
) -> None:
    """In Python's integers and float64, from the seed on. The slack is float32's rounding of the noise."""
    args, seeds = for_logits(normal(2, 4, 61, std=2.0).cpu()), [5, 2**40 + 3]
    s = sampling(2, 4, top_k=top_k, top_p=top_p, temperature=temperature, seeds=seeds, first=1 << 16 | 2)
    tokens = draw(args, s, backend)
    for b, seed in enumerate(seeds):
        for n in range(4):
            words = [
                word
                for group in range(16)
                for word in python_philox((group, (1 << 16 | 2) + n, 3, 2), (seed & MASK, seed >> 32))
            ]
            kept = allowed(args[0][b, n].tolist(), top_k, top_p, temperature)
            noise = {i: -math.log(-math.log(((words[i] >> 9) + 0.5) * 2.0**-23)) for i in kept}
            score = {i: math.log(p) + noise[i] for i, p in kept.items()}
            assert score[int(tokens[b, n])] >= max(score.values()) - 1e-5


@backends
def test_draws_are_those_of_the_reference(backend: str) -> None:
    """Token for token, with many equal logits, some of them 0 and -0, where top-k and where top-p ends."""
    logits = normal(8, 32, 40).mul(2).round().div(2)
    logits[7] = torch.where(logits[7] > 0, 0.0, -0.0)
    s = sampling(
        8,
        32,
        top_k=[0, 5, 0, 7, 39, 2, 100, 12],
        top_p=[1.0, 1.0, 0.6, 0.7, 0.95, 0.3, 0.0, 0.77],
        temperature=[1.0, 2.0, 1.0, 1.5, 0.7, 3.0, 1.0, 1.0],
        first=1 << 16 | 5,
    )
    assert torch.equal(draw(for_logits(logits), s, backend), draw(for_logits(logits), s, "torch"))


@backends
@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"), [(0, 1.0, 1.0), (0, 1.0, 0.5), (0, 1.0, 3.0), (4, 1.0, 1.0), (0, 0.8, 1.0)]
)
def test_frequencies(backend: str, top_k: int, top_p: float, temperature: float) -> None:
    """Pearson's chi-square of 2048 draws against the filtered softmax: below 7 degrees' 0.999 quantile."""
    n, logits = 2048, [0.0, 0.5, 1.0, -0.5, 0.25, 0.75, -1.0, 0.1]
    s = sampling(1, n, top_k=top_k, top_p=top_p, temperature=temperature, seeds=[2024])
    counts = draw(for_logits(torch.tensor(logits).expand(1, n, 8)), s, backend).flatten().bincount(minlength=8).tolist()
    expected = allowed(logits, top_k, top_p, temperature)
    assert sum(counts[i] for i in expected) == n
    assert sum((counts[i] - n * p) ** 2 / (n * p) for i, p in expected.items()) <= 24.32


@backends
def test_a_row_does_not_depend_on_the_batch(backend: str) -> None:
    args = for_logits(normal(4, 16, 32).cpu())
    s = sampling(
        4, 16, top_k=[0, 5, 1, 20], top_p=[1.0, 0.9, 0.75, 0.75], temperature=[1, 2, 1, 0.7], seeds=[8, 8, 9, 0]
    )
    tokens, logits = run_case(guided_sample, (*args, s), None, backend)
    for b in range(4):
        row = (args[0][b : b + 1], None, args[2][:1], *args[3:])
        alone = run_case(guided_sample, (*row, row_sampling(s, b)), None, backend)
        assert torch.equal(alone[0][0], tokens[b]) and torch.equal(alone[1][0], logits[b])


@backends
def test_a_position_does_not_depend_on_the_map(backend: str) -> None:
    cond, *rest = for_logits(normal(1, 20, 32).cpu())
    whole = draw((cond, *rest), sampling(1, 20), backend)
    assert torch.equal(whole[:, 6:14], draw((cond[:, 6:14], *rest), sampling(1, 8, first=6), backend))


@backends
def test_positions_an_image(backend: str) -> None:
    """Images of a batch may lie at different places: each draws as it does alone."""
    args, s = for_logits(torch.zeros(2, 16, 64)), sampling(2, 16, seeds=[5, 5])
    rows = torch.stack((s.positions, s.positions + 8))
    tokens = draw(args, s._replace(positions=rows), backend)
    assert torch.equal(tokens[0, 8:], tokens[1, :8])
    for b in range(2):
        assert torch.equal(tokens[b], draw(args, s._replace(positions=rows[b]), backend)[b])


@backends
def test_seed_step_stream_and_position_matter(backend: str) -> None:
    args = for_logits(torch.zeros(1, 64, 64))
    changes: list[dict[str, Any]] = [
        {},
        {"seeds": [1]},
        {"seeds": [1 << 40]},
        {"step": 4},
        {"stream": 3},
        {"first": 64},
    ]
    drawn = [draw(args, sampling(1, 64, **change), backend) for change in changes]
    for i, a in enumerate(drawn):
        assert torch.equal(a, draw(args, sampling(1, 64, **changes[i]), backend))
        for b in drawn[:i]:
            assert (a == b).float().mean() <= 0.2  # 1/64 by chance


@backends
@each_size(empty=(0, 4, 8, 16), one=(1, 1, 1, 1), no_tokens=(2, 0, 8, 16))
def test_degenerate_sizes(backend: str, size: tuple[int, ...]) -> None:
    args = inputs(*size, torch.float32)
    for s in (None, sampling(*size[:2], top_k=3, top_p=0.5)):
        tokens = draw(args, s, backend)
        assert tokens.shape == size[:2] and (tokens == 0).all()
    check(logits_of, args, backend=backend, formula=formula)


@backends
def test_large_vocabulary(backend: str) -> None:
    """The published vocabulary and the prior's settings: all draws lie in the top 20 and in the nucleus."""
    args = inputs(1, 8, 32, 4096, torch.float32)
    tokens, logits = run_case(guided_sample, (*args, sampling(1, 8, top_k=20, top_p=0.75)), None, backend)
    for n in range(8):
        assert int(tokens[0, n]) in allowed(logits[0, n].tolist(), 20, 0.75)


# --- errors ----------------------------------------------------------------------------------------------------------

SHAPES: dict[str, tuple[int, ...]] = {
    "cond": (2, 3, 8),
    "uncond": (2, 3, 8),
    "ratio": (2,),
    "weight": (16, 8),
    "bias": (16,),
}


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("cond", (6, 8), "cond must be (B, L, C), got shape (6, 8)"),
        ("uncond", (2, 3, 7), "uncond must be (B, L, C) = (2, 3, 8), got (2, 3, 7)"),
        ("ratio", (1,), "ratio must be (B,) = (2,), got (1,)"),
        ("weight", (8,), "weight must be (V, C), got shape (8,)"),
        ("weight", (16, 7), "weight must be (V, C) = (16, 8), got (16, 7)"),
        ("bias", (8,), "bias must be (V,) = (16,), got (8,)"),
    ],
)
def test_bad_shape(name: str, shape: tuple[int, ...], message: str) -> None:
    with raises(ValueError, f"guided_sample: {message}"):
        guided_sample(**{k: torch.zeros(s) for k, s in (SHAPES | {name: shape}).items()})


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("top_k", (1,), "top_k must be (B,) = (2,), got (1,)"),
        ("top_p", (2, 1), "top_p must be (B,) = (2,), got (2, 1)"),
        ("temperature", (), "temperature must be (B,) = (2,), got ()"),
        ("seeds", (3,), "seeds must be (B,) = (2,), got (3,)"),
        ("positions", (2,), "positions must be (L,) or (B, L) = (3,), got (2,)"),
        ("positions", (1, 3), "positions must be (B, L) = (2, 3), got (1, 3)"),
    ],
)
def test_bad_sampling_shape(name: str, shape: tuple[int, ...], message: str) -> None:
    s = sampling(2, 3)._replace(**{name: torch.ones(shape)})
    with raises(ValueError, f"guided_sample: {message}"):
        guided_sample(**{k: torch.zeros(shape) for k, shape in SHAPES.items()}, sampling=s)
