"""Graphs: what is captured, replayed, padded and cut. A stand-in records and replays: a capture needs a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from varsr_engine.config import ModelConfig
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.graphs import GraphCache, chunks, graph_sizes, padded, run_in_chunks
from varsr_engine.model.varsr import VARSR


class Recording:
    """As a CUDA graph: a replay computes from the captured inputs into the captured outputs, whatever was passed."""

    def __init__(self) -> None:
        self.captured: list[int] = []
        self.replayed: list[int] = []

    def __call__(self, program, inputs):  # type: ignore[no-untyped-def]
        rows = inputs[0].shape[0]
        self.captured.append(rows)
        outputs = tuple(torch.full_like(t, torch.nan if t.is_floating_point() else -1) for t in program(*inputs))

        def replay() -> None:
            self.replayed.append(rows)
            for mine, new in zip(outputs, program(*inputs), strict=True):
                mine.copy_(new)

        return replay, outputs


def program(x: Tensor, factor: Tensor) -> tuple[Tensor, ...]:
    return x * factor[:, None], x.sum(dim=1)


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3), torch.arange(1.0, batch + 1)


def test_sizes() -> None:
    assert graph_sizes(1) == [1]
    assert graph_sizes(8) == [8, 4, 2, 1]
    assert graph_sizes(6) == [6, 4, 2, 1]


@pytest.mark.parametrize(
    ("batch", "largest", "expected"),
    [
        (1, 8, [(0, 1, 1)]),
        (3, 8, [(0, 3, 4)]),
        (8, 8, [(0, 8, 8)]),
        (13, 4, [(0, 4, 4), (4, 4, 4), (8, 4, 4), (12, 1, 1)]),
        (5, 6, [(0, 5, 6)]),
    ],
)
def test_chunks(batch: int, largest: int, expected: list[tuple[int, int, int]]) -> None:
    assert chunks(batch, largest) == expected


def test_padding_repeats_the_last_row() -> None:
    assert padded(torch.arange(5), 2, 3, 4).tolist() == [2, 3, 4, 4]
    assert padded(torch.arange(4), 0, 4, 4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8, 11])
def test_any_batch_gives_what_the_program_gives(batch: int) -> None:
    capture = Recording()
    args = inputs(batch)
    results = run_in_chunks(GraphCache(capture), "key", program, args, largest=4)
    for result, expected in zip(results, program(*args), strict=True):
        assert torch.equal(result, expected)
    assert set(capture.captured) <= {1, 2, 4}


def test_a_key_is_captured_once_and_replayed_with_new_contents() -> None:
    capture = Recording()
    cache = GraphCache(capture)
    first, second = inputs(2), inputs(2)
    before = cache.run("a", program, first)
    kept = [t.clone() for t in before]
    after = cache.run("a", program, second)
    assert capture.captured == [2] and capture.replayed == [2, 2]
    assert torch.equal(after[0], program(*second)[0])
    assert all(torch.equal(x, y) for x, y in zip(before, kept, strict=True)), "a later replay changed a result"
    cache.run("b", program, first)
    assert capture.captured == [2, 2] and "b" in cache and "c" not in cache


def test_inputs_are_not_kept() -> None:
    """The caller may overwrite its tensors after a run, and a graph does not read them at a replay."""
    cache, args = GraphCache(Recording()), inputs(2)
    cache.run("a", program, args)
    args[0].fill_(torch.nan)
    fresh = inputs(2)
    assert torch.equal(cache.run("a", program, fresh)[0], program(*fresh)[0])


# --- the pipeline by graphs ------------------------------------------------------------------------------------------

MICRO = ModelConfig(
    depth=2,
    embed_dim=32,
    num_heads=2,
    patch_nums=(1, 2, 4),
    vocab_size=32,
    latent_channels=8,
    cond_channels=(8, 16),
    vae_channels=8,
    vae_multipliers=(1, 2),
    vae_res_blocks=1,
    vae_norm_groups=4,
    refiner_width=32,
    refiner_depth=1,
    refiner_steps=3,
)


@pytest.fixture(scope="module")
def eager() -> Engine:
    return engine_of_micro()


def engine_of_micro() -> Engine:
    torch.manual_seed(0)
    model = VARSR(MICRO)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return Engine.from_model(model, device="cpu")


@pytest.fixture
def graphed() -> tuple[Engine, Recording]:
    """An engine whose batches run as recorded programs of at most four images."""
    engine, capture = engine_of_micro(), Recording()
    engine._pipeline._graphs, engine._pipeline._largest_graph = GraphCache(capture), 4
    return engine, capture


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_a_graphed_batch_equals_an_eager_one(eager: Engine, graphed: tuple[Engine, Recording], batch: int) -> None:
    engine, capture = graphed
    side = MICRO.image_side
    settings = dict(
        labels=[i % 2 for i in range(batch)],
        guidance_scale=[1.0 + i for i in range(batch)],
        seed=list(range(batch)),
        refiner_temperature=[0.5 + 0.1 * i for i in range(batch)],
    )
    for _ in range(2):  # captured, then replayed with another picture
        lr = torch.rand(batch, 3, side, side) * 2 - 1
        mine, plain = engine.generate(lr, **settings), eager.generate(lr, **settings)
        assert torch.equal(mine.tokens, plain.tokens)
        assert (mine.images - plain.images).abs().max() < 1e-5
        assert (mine.latent - plain.latent).abs().max() < 1e-5
    assert set(capture.captured) <= {1, 2, 4}
    assert len(capture.captured) == len(set(capture.captured))


def test_what_changes_the_program_gets_a_graph_of_its_own(graphed: tuple[Engine, Recording]) -> None:
    engine, capture = graphed
    lr = torch.rand(1, 3, MICRO.image_side, MICRO.image_side)
    for settings in ({}, {"seed": 3}, {"top_k": 4}, {"refine": False}, {"steps": 2}, {"guidance_scale": 2.0}):
        engine.generate(lr, **settings)
    assert len(capture.captured) == 4  # greedy, sampled, without refiner, two steps; seeds and guidance are contents


def test_stages_are_still_told(graphed: tuple[Engine, Recording], eager: Engine) -> None:
    lr = torch.rand(1, 3, MICRO.image_side, MICRO.image_side)
    heard: dict[str, list[str]] = {"graph": [], "eager": []}
    graphed[0].generate(lr, on_stage=heard["graph"].append)
    eager.generate(lr, on_stage=heard["eager"].append)
    assert heard["graph"] == heard["eager"]


def test_warm_up_captures_every_size(graphed: tuple[Engine, Recording]) -> None:
    engine, capture = graphed
    heard: list[tuple[int, int]] = []
    engine.warmup([1, 2, 4], lambda done, total: heard.append((done, total)))
    assert capture.captured == [4, 2, 1]
    assert heard == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_tiles_share_graphs_of_latents(eager: Engine, graphed: tuple[Engine, Recording]) -> None:
    engine, capture = graphed
    source = (torch.rand(3, 9, 7) * 255).to(torch.uint8).permute(1, 2, 0).numpy()
    mine, plain = engine.upscale(source), eager.upscale(source)
    difference = mine.picture.rgb.astype(float) - plain.picture.rgb.astype(float)
    assert abs(difference).max() <= 1e-4
    assert capture.captured
