"""The losses against values worked out by hand or with another formula."""

from __future__ import annotations

import math

import pytest
import torch

from varsr_engine.model.refiner import Schedule
from varsr_engine.training.losses import DiffusionLoss, color_loss, gradient_loss, token_loss


def test_token_loss_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0]]])  # probabilities 1/2, 1/2 and 3/4, 1/4
    targets = torch.tensor([[0, 1]])
    assert token_loss(logits, targets).item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_gradient_loss_by_hand() -> None:
    # Error: one column of ones. Horizontal differences 1, 1, 0 a row; vertical ones none. One scale.
    output = torch.zeros(1, 1, 2, 4)
    output[..., 1] = 1
    assert gradient_loss(output, torch.zeros_like(output), scales=1).item() == pytest.approx((2 / 3 + 0) / 2)
    # Halved: (0.5, 0) a row: one difference of 0.5, no vertical pair is left, so only two scales' means are defined.
    tall = torch.zeros(1, 1, 4, 4)
    tall[..., 1] = 1
    expected = ((2 / 3 + 0) + (0.5 + 0)) / 4
    assert gradient_loss(tall, torch.zeros_like(tall), scales=2).item() == pytest.approx(expected)


def test_gradient_loss_ignores_a_constant() -> None:
    image = torch.rand(2, 3, 16, 16)
    assert gradient_loss(image + 0.3, image).item() == pytest.approx(0, abs=1e-6)


@pytest.fixture
def diffusion() -> DiffusionLoss:
    return DiffusionLoss(Schedule.cosine(1000))


def test_noise_estimate_by_hand(diffusion: DiffusionLoss) -> None:
    x0, noise = torch.tensor([[0.5, -0.5]]), torch.tensor([[1.0, 2.0]])
    t = torch.tensor([500])
    xt = diffusion.noised(x0, noise, t)
    bar = Schedule.cosine(1000).alpha_bars[500]
    assert xt[0].tolist() == pytest.approx(
        [math.sqrt(bar) * 0.5 + math.sqrt(1 - bar), -0.5 * math.sqrt(bar) + 2 * math.sqrt(1 - bar)]
    )
    output = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
    error, _ = diffusion(output, x0, xt, noise, t)
    assert error.item() == pytest.approx((1 + 4) / 2)


@pytest.mark.parametrize("t", [1, 37, 500, 998])
def test_bound_is_the_gaussian_divergence(diffusion: DiffusionLoss, t: int) -> None:
    """KL of two normals, from torch.distributions, in bits."""
    torch.manual_seed(t)
    x0, noise, eps = torch.randn(3, 6, 4, dtype=torch.float64).float() * 0.5
    v = torch.rand(6, 4) * 2 - 1
    steps = torch.full((6,), t)
    xt = diffusion.noised(x0, noise, steps)
    bars = Schedule.cosine(1000).alpha_bars
    bar, previous = bars[t], bars[t - 1]
    beta = 1 - bar / previous
    tilde = beta * (1 - previous) / (1 - bar)

    def mean(start: torch.Tensor) -> torch.Tensor:
        return beta * math.sqrt(previous) / (1 - bar) * start + (1 - previous) * math.sqrt(1 - beta) / (1 - bar) * xt

    estimate = (xt - math.sqrt(1 - bar) * eps) / math.sqrt(bar)
    log_variance = (v + 1) / 2 * math.log(beta) + (1 - v) / 2 * math.log(tilde)
    true = torch.distributions.Normal(mean(x0), math.sqrt(tilde))
    model = torch.distributions.Normal(mean(estimate), (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(true, model).mean().item() / math.log(2)
    assert diffusion.variational_bound(eps, v, x0, xt, steps).item() == pytest.approx(expected, rel=2e-3)


def test_bound_at_zero_is_the_likelihood(diffusion: DiffusionLoss) -> None:
    x0, noise = torch.full((1, 1), 0.25), torch.full((1, 1), 0.5)
    t = torch.tensor([0])
    xt = diffusion.noised(x0, noise, t)
    v = torch.full((1, 1), 1.0)
    log_beta = math.log(1 - Schedule.cosine(1000).alpha_bars[0])
    bound = diffusion.variational_bound(noise, v, x0, xt, t).item()  # the estimate is x0 itself
    assert bound == pytest.approx(0.5 * (log_beta + math.log(2 * math.pi)) / math.log(2), rel=1e-3)


def test_only_the_variance_learns_from_the_bound(diffusion: DiffusionLoss) -> None:
    output = torch.randn(5, 8, requires_grad=True)
    x0, noise = torch.randn(5, 4), torch.randn(5, 4)
    t = torch.tensor([3, 100, 400, 700, 999])
    _, bound = diffusion(output, x0, diffusion.noised(x0, noise, t), noise, t)
    bound.backward()
    assert output.grad is not None
    assert output.grad[:, :4].abs().max() == 0 and output.grad[:, 4:].abs().min() > 0


def test_color_loss_by_hand() -> None:
    """A gray error of 0.1 lies along luminance alone: sqrt(3) x 0.1 there, none on the other axes, over 3 x 2."""
    zero = torch.zeros(1, 3, 2, 2)
    assert color_loss(zero + 0.1, zero).item() == pytest.approx(math.sqrt(3) * 0.1 / 3 / 2)
    green = zero.clone()
    green[:, 1] = 0.1
    expected = (0.1 / math.sqrt(3) + 0 + 3 * 0.1 / math.sqrt(1.5)) / 3 / 2
    assert color_loss(green, zero).item() == pytest.approx(expected)
