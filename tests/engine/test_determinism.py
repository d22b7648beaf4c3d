"""The same seed gives the same image: alone, in any batch, at any place in it, and on every call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.engine.conftest import Loaded
from tests.numerics import relative_error
from varsr_engine.errors import InvalidImageError, InvalidParamsError, NumericalError

Load = Callable[..., Loaded]
SETTINGS = [  # label, guidance, seed, top_k, top_p, temperature
    (0, 6.0, 11, 1, 0.75, 1.0),
    (1, 0.0, 2**62, 5, 0.9, 1.0),
    (0, 2.5, 0, 0, 1.0, 0.7),
    (1, 7.0, 2**32 + 5, 50, 0.5, 1.3),
    (0, 6.0, 12, 1, 0.75, 1.0),
]


def inputs(engine_side: int, batch: int) -> torch.Tensor:
    return torch.rand(batch, 3, engine_side, engine_side, generator=torch.Generator().manual_seed(3)) * 2 - 1


def settings(rows: list[int]) -> dict[str, list[float]]:
    names = ("labels", "guidance_scale", "seed", "top_k", "top_p", "temperature")
    return {name: [SETTINGS[r][i] for r in rows] for i, name in enumerate(names)}


def test_an_image_of_a_mixed_batch_equals_the_one_alone(load_engine: Load) -> None:
    _, engine = load_engine("tiny")
    lr = inputs(engine.model_config.image_side, 5)
    together = engine.generate(lr, **settings([0, 1, 2, 3, 4]), trace=True)  # type: ignore[arg-type]
    order = [3, 0, 4, 2, 1]
    permuted = engine.generate(lr[order], **settings(order), trace=True)  # type: ignore[arg-type]
    for row in range(5):
        alone = engine.generate(lr[row : row + 1], **settings([row]), trace=True)  # type: ignore[arg-type]
        for batch, place in ((together, row), (permuted, order.index(row))):
            assert alone.trace is not None and batch.trace is not None
            for mine, theirs in zip(alone.trace.tokens, batch.trace.tokens, strict=True):
                assert torch.equal(mine[0], theirs[place])
            assert relative_error(batch.images[place], alone.images[0]) <= 1e-5


def test_repeated_calls_are_identical_and_seeds_matter(load_engine: Load) -> None:
    _, engine = load_engine("tiny")
    lr = inputs(engine.model_config.image_side, 1)
    first, second, other = (engine.generate(lr, seed=s) for s in (7, 7, 8))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.tokens, other.tokens) and not torch.equal(first.images, other.images)


@pytest.mark.parametrize("top_k", [1, 20])
def test_several_images_an_input_equal_their_own_requests(load_engine: Load, top_k: int) -> None:
    _, engine = load_engine("tiny")
    lr = inputs(engine.model_config.image_side, 2)
    seeds = [5, 6, 90, 4]
    out = engine.generate(lr, seed=seeds, num_images_per_input=2, top_k=top_k)
    assert out.images.shape[0] == 4 and out.seeds == seeds
    for i, seed in enumerate(seeds):
        alone = engine.generate(lr[i // 2 : i // 2 + 1], seed=seed, top_k=top_k)
        assert relative_error(out.images[i], alone.images[0]) <= 1e-5
    consecutive = engine.generate(lr, seed=[5, 90], num_images_per_input=2, top_k=top_k)
    assert consecutive.seeds == [5, 6, 90, 91]


def test_the_noise_of_a_seed_is_fixed_for_ever(load_engine: Load) -> None:
    """A change of these numbers changes every user's pictures: it needs a major version."""
    _, engine = load_engine("tiny")
    noise = engine._pipeline._refiner_loop.draw(torch.tensor([42]), torch.zeros(1, 2, dtype=torch.int64), 3)
    assert noise.shape == (1, 64, 32)
    expected = torch.tensor(EXPECTED_NOISE)
    assert torch.allclose(noise[0, 9, :4], expected, rtol=0, atol=2e-6), noise[0, 9, :4].tolist()


EXPECTED_NOISE = [-0.1073403, 1.8395724, 0.5104783, -0.3058286]


@pytest.mark.parametrize(
    "options",
    [
        {"seed": -1},
        {"seed": 2**63},
        {"seed": 1.5},
        {"seed": [1, 2, 3]},
        {"labels": 2},
        {"labels": -1},
        {"guidance_scale": float("nan")},
        {"guidance_scale": -1},
        {"top_k": -1},
        {"top_k": True},
        {"top_p": 0},
        {"top_p": 1.5},
        {"temperature": 0},
        {"steps": 0},
        {"steps": 1001},
        {"num_images_per_input": 0},
        {"noise": torch.zeros(3)},
    ],
    ids=str,
)
def test_bad_settings_are_named(load_engine: Load, options: dict[str, object]) -> None:
    _, engine = load_engine("tiny")
    lr = inputs(engine.model_config.image_side, 1)
    with pytest.raises(InvalidParamsError, match=next(iter(options))):
        engine.generate(lr, **options)  # type: ignore[arg-type]


def test_bad_inputs_are_named(load_engine: Load) -> None:
    _, engine = load_engine("tiny")
    lr = inputs(engine.model_config.image_side, 1)
    for bad, kind, message in (
        (lr[0], InvalidParamsError, "lr must be"),
        (lr[:, :, :-1], InvalidParamsError, "lr must be"),
        (lr[:0], InvalidParamsError, "lr must be"),
        (lr.mul(127).to(torch.int8), InvalidParamsError, "floating point"),
        (lr * float("nan"), InvalidImageError, "NaN"),
        (lr * 255, InvalidImageError, r"\[-1, 1\]"),
    ):
        with pytest.raises(kind, match=message):
            engine.generate(bad)
    with pytest.raises(InvalidParamsError, match="class-to-image prior"):
        engine.class_to_image(0)
    _, prior = load_engine("c2i")
    with pytest.raises(InvalidParamsError, match="super-resolution model"):
        prior.upscale(b"")


def test_a_network_that_overflows_is_an_error_not_a_black_picture(load_engine: Load) -> None:
    case, engine = load_engine("tiny")
    noise = torch.full((case.config.refiner_steps + 1, 1, 64, 32), float("inf"))
    lr = inputs(engine.model_config.image_side, 1)
    with pytest.raises(NumericalError, match="NaN or infinity"):
        engine.generate(lr, noise=noise)
