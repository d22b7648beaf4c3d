"""Batch-invariant numerics: the same bits alone, in any batch, at any place in it, blocking or queued.

And in either numerics: nothing of one request reaches another, through a batch or through memory that is used again.
"""

from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import pytest
import torch

from tests.engine.test_graphs import Recording
from tests.engine.test_tiling import MICRO, engine_of, picture, same
from tests.golden_cases import weights
from tests.numerics import relative_error
from varsr_engine.checkpoint import TensorCheckpoint
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.generation import Generation, Pipeline
from varsr_engine.engine.graphs import GraphCache
from varsr_engine.engine.params import EngineConfig

SMALL, LARGE = (8, 8), (20, 13)  # of one tile, and of six
ROWS: list[dict[str, float]] = [  # an argmax among sampled ones too
    {"labels": 0, "guidance_scale": 6.0, "seed": 11, "top_k": 1, "temperature": 1.0},
    {"labels": 1, "guidance_scale": 0.0, "seed": 2**62, "top_k": 5, "temperature": 1.0},
    {"labels": 0, "guidance_scale": 2.5, "seed": 0, "top_k": 0, "temperature": 0.7},
    {"labels": 1, "guidance_scale": 7.0, "seed": 2**32 + 5, "top_k": 50, "temperature": 1.3},
]


def inputs(side: int, batch: int) -> torch.Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(3)) * 2 - 1


def settings(rows: list[int]) -> dict[str, Any]:
    return {name: [ROWS[row][name] for row in rows] for name in ROWS[0]}


def equal(batch: Generation, place: int, alone: Generation) -> bool:
    pairs = ((batch.images, alone.images), (batch.latent, alone.latent), (batch.tokens, alone.tokens))
    return all(torch.equal(mine[place], theirs[0]) for mine, theirs in pairs)


@pytest.fixture(scope="module")
def invariant() -> Engine:
    return engine_of(numerics="batch_invariant")


def check(order: list[int], solo: Engine, *engines: Engine, **options: Any) -> None:
    """The images of a batch in that order are those that `solo` makes of each alone."""
    lr = inputs(solo.model_config.image_side, len(order))
    alone = [solo.generate(lr[n : n + 1], **settings([n]), **options) for n in range(len(order))]
    for engine in engines:
        batch = engine.generate(lr[order], **settings(order), **options)
        assert all(equal(batch, place, alone[n]) for place, n in enumerate(order))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 0, 2, 1]], ids=str)
def test_any_batch_has_the_bits_of_each_image_alone(invariant: Engine, order: list[int]) -> None:
    check(order, invariant, invariant, engine_of(numerics="batch_invariant", batch_size=3))


def test_the_kernels_of_a_gpu_too() -> None:
    """In Triton's interpreter where there is none; and to rounding they are the references."""
    small = dataclasses.replace(
        MICRO,
        depth=1,
        patch_nums=(1, 2),
        cond_channels=(8, 16),
        vae_multipliers=(1, 2),
        vae_res_blocks=1,
        refiner_depth=1,
    )
    checkpoint = TensorCheckpoint(weights(small, 3), small, "small")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    solo, other = (
        Engine(checkpoint, EngineConfig(device=device, backend="triton", numerics="batch_invariant", batch_size=size))
        for size in (None, 4)
    )
    check([1, 0], solo, other, steps=1)
    plain = Engine(checkpoint, EngineConfig(device=device, backend="torch", numerics="batch_invariant"))
    a, b = (engine.generate(inputs(small.image_side, 1), **settings([1]), steps=1) for engine in (solo, plain))
    assert torch.equal(a.tokens, b.tokens) and relative_error(a.images, b.images) < 1e-4


def test_one_image_a_pass_whatever_batch_size_says(invariant: Engine) -> None:
    engine = engine_of(numerics="batch_invariant", batch_size=4)
    with mock.patch.object(Pipeline, "_latent", autospec=True, side_effect=Pipeline._latent) as latent:
        engine.generate(inputs(MICRO.image_side, 3), num_images_per_input=2)
        engine.upscale(picture(*LARGE))
    assert [len(call.args[1]) for call in latent.call_args_list] == [1] * (6 + 6)
    assert engine.largest_batch == engine.config.images_per_pass == invariant.largest_batch == 1


def test_a_batch_is_what_fast_numerics_give_to_rounding(invariant: Engine) -> None:
    """Every tensor of the trace, in the same order of rows, with several outputs an input; and given noise."""
    lr = inputs(MICRO.image_side, 2)
    mine, fast = (
        engine.generate(lr, seed=[5, 6, 90, 4], num_images_per_input=2, trace=True, top_k=4)
        for engine in (invariant, engine_of())
    )
    assert mine.seeds == fast.seeds == [5, 6, 90, 4] and list(mine.seconds) == list(fast.seconds)
    assert mine.trace is not None and fast.trace is not None
    for f in dataclasses.fields(fast.trace):
        a, b = getattr(mine.trace, f.name), getattr(fast.trace, f.name)
        if f.name == "prefix":  # of fast numerics one an input
            b = b.repeat_interleave(2, dim=0) if len(b) == 2 else b
        for x, y in zip(*((t if isinstance(t, list) else [t]) for t in (a, b)), strict=True):
            assert relative_error(x.double(), y.double()) <= 1e-5, f.name
    steps, cells = MICRO.refiner_steps + 1, MICRO.latent_side**2
    noise = torch.randn(steps, 2, cells, MICRO.latent_channels, generator=torch.Generator().manual_seed(1))
    together = invariant.generate(lr, noise=noise)
    for n in range(2):
        assert equal(together, n, invariant.generate(lr[n : n + 1], noise=noise[:, n : n + 1]))


@pytest.mark.parametrize(
    ("size", "options"), [(SMALL, {}), (SMALL, {"top_k": 5}), (LARGE, {}), (LARGE, {"tile": "published"})], ids=str
)
def test_samples_are_their_seeds_own_results(invariant: Engine, size: tuple[int, int], options: dict[str, Any]) -> None:
    seeds = [3, 17]
    for seed, result in zip(seeds, invariant.upscale_samples(picture(*size), seeds, **options), strict=True):
        assert same(result, invariant.upscale(picture(*size), seed=seed, **options))


def test_blocking_and_queued_in_any_company(invariant: Engine) -> None:
    """Images of one tile and of several, of different settings, submitted at once and one after the other."""
    sources = [picture(*size, seed=n) for n, size in enumerate([SMALL, LARGE, SMALL, (16, 9)])]
    own: list[dict[str, Any]] = [{"seed": n, "cfg": 1.0 + n} for n in range(len(sources))]
    expected = [invariant.upscale(source, **params) for source, params in zip(sources, own, strict=True)]
    for batch_size in (None, 4):
        with engine_of(numerics="batch_invariant", batch_size=batch_size) as engine:
            handles = [engine.submit(source, **params) for source, params in zip(sources, own, strict=True)]
            assert all(same(handle.result(), one) for handle, one in zip(handles, expected, strict=True))
            alike = [invariant.upscale(source) for source in sources]
            many = engine.upscale_many(sources)
            assert all(same(a, b) for a, b in zip(many, alike, strict=True))  # type: ignore[arg-type]


def test_a_gpu_replays_the_graph_of_one_image(invariant: Engine) -> None:
    engine, capture = engine_of(numerics="batch_invariant", batch_size=4), Recording()
    engine._pipeline._graphs, engine._pipeline._largest_graph = GraphCache(capture), engine.largest_batch
    lr = inputs(MICRO.image_side, 3)
    together, samples = engine.generate(lr), engine.generate(lr[:1], seed=[7, 8], num_images_per_input=2)
    assert set(capture.captured) == {1} and len(capture.captured) == 1 and capture.replayed == [1] * 5
    for n in range(3):
        assert equal(together, n, invariant.generate(lr[n : n + 1]))
    for n, seed in enumerate((7, 8)):
        assert equal(samples, n, invariant.generate(lr[:1], seed=seed))


# --- nothing of one request reaches another ---------------------------------------------------------------------------


def sampled(engine: Engine, lr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(images, latent, tokens) with no look at whether they are finite: what a batch leaves behind in any case."""
    request, seeds = engine._request(
        len(lr), 1, labels=0, guidance_scale=None, seed=0, top_k=None, top_p=None, temperature=1.0,
        refiner_temperature=None,
    )  # fmt: skip
    with torch.inference_mode():
        latent, tokens = engine._pipeline._latent(lr, request, seeds, None, True)
        return engine._pipeline._decoded(latent), latent, tokens


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e4], ids=str)
@pytest.mark.parametrize("place", [0, 2, 3])
def test_a_poisoned_row_changes_no_bit_of_its_neighbours(bad: float, place: int) -> None:
    """In fast numerics, where they share every kernel."""
    engine, lr = engine_of(), inputs(MICRO.image_side, 4)
    before = sampled(engine, lr)
    poisoned = lr.clone()
    poisoned[place] = bad
    others = [n for n in range(4) if n != place]
    for mine, theirs in zip(sampled(engine, poisoned), before, strict=True):
        assert torch.equal(mine[others], theirs[others])
    assert not torch.equal(sampled(engine, poisoned)[1][place], before[1][place])


@pytest.mark.parametrize("numerics", ["fast", "batch_invariant"])
def test_memory_that_is_used_again_holds_nothing_of_before(numerics: str) -> None:
    """Caches, scratch and maps are written before they are read: an engine after garbage is as a fresh one."""
    used, lr = engine_of(numerics=numerics), inputs(MICRO.image_side, 1)
    sampled(used, torch.full((4, 3, MICRO.image_side, MICRO.image_side), float("nan")))
    with torch.inference_mode():  # freed blocks, which the next allocations may get
        for size in (2**10, 2**14, 2**18, 2**20):
            del [torch.full((size,), float("nan")) for _ in range(8)][:]
    assert equal(used.generate(lr), 0, engine_of(numerics=numerics).generate(lr))
    assert same(used.upscale(picture(*LARGE)), engine_of(numerics=numerics).upscale(picture(*LARGE)))


def test_padding_is_a_copy_of_the_batch_s_own_last_row() -> None:
    """A graph of four runs three rows after a batch that left NaN in its inputs and outputs."""
    engine, lr = engine_of(), inputs(MICRO.image_side, 3)
    seen: list[torch.Tensor] = []

    class Watching(Recording):
        def __call__(self, program, inputs):  # type: ignore[no-untyped-def]
            replay, outputs = super().__call__(program, inputs)

            def watched() -> None:
                seen.append(inputs[0].clone())
                replay()

            return watched, outputs

    engine._pipeline._graphs, engine._pipeline._largest_graph = GraphCache(Watching()), 4
    expected = engine.generate(lr)
    request, _ = engine._request(
        4, 1, labels=0, guidance_scale=None, seed=9, top_k=None, top_p=None, temperature=1.0, refiner_temperature=None
    )
    engine._pipeline._by_graph(
        "image", torch.full_like(lr[:1], float("nan")).repeat(4, 1, 1, 1), request, None, True, None, None
    )
    again = engine.generate(lr)
    assert torch.equal(again.images, expected.images) and torch.equal(again.latent, expected.latent)
    assert torch.equal(seen[-1], torch.cat((lr, lr[-1:]))) and len(seen) == 3
    assert seen[1].isnan().all()
