"""Residual quantisation with gradients: the same tokens as `Quantizer.encode`, and a codebook that stays alive."""

from __future__ import annotations

import pytest
import torch

from varsr_engine.model.quantizer import Quantizer
from varsr_engine.training.config import TrainConfig
from varsr_engine.training.quantization import CodebookUse, quantise, usage


@pytest.fixture
def quantizer(config: TrainConfig) -> Quantizer:
    torch.manual_seed(0)
    return Quantizer(config.model)


def test_tokens_are_those_of_encode(quantizer: Quantizer) -> None:
    latent = torch.randn(3, 8, 8, 8)
    tokens, _, residual = quantizer.encode(latent)
    quantised = quantise(quantizer, latent, 0.25)
    assert all(torch.equal(a, b) for a, b in zip(tokens, quantised.tokens, strict=True))
    last = quantizer.embedding(tokens[-1])
    expected = latent.flatten(2).mT - residual + last
    assert torch.allclose(quantised.latent.flatten(2).mT, expected, atol=1e-5)


def test_gradient_goes_straight_through(quantizer: Quantizer) -> None:
    latent = torch.randn(1, 8, 8, 8, requires_grad=True)
    quantise(quantizer, latent, 0.0).latent.sum().backward()
    assert latent.grad is not None and torch.equal(latent.grad, torch.ones_like(latent))


def test_loss_by_hand(quantizer: Quantizer) -> None:
    """Codebook of zeros, residual convolutions of zeros: f_hat is 0, so each term is |f|^2."""
    torch.nn.init.zeros_(quantizer.embedding.weight)
    for phi in quantizer.quant_resi.qresi_ls:
        torch.nn.init.zeros_(phi.bias)
    latent = torch.randn(2, 8, 8, 8)
    assert quantise(quantizer, latent, 0.25).loss.item() == pytest.approx(
        1.25 * latent.square().mean().item(), rel=1e-5
    )


def test_commitment_reaches_the_encoder_and_the_rest_the_codebook(quantizer: Quantizer) -> None:
    latent = torch.randn(1, 8, 8, 8, requires_grad=True)
    quantise(quantizer, latent, 0.25).loss.backward()
    assert latent.grad is not None and latent.grad.abs().max() > 0
    assert quantizer.embedding.weight.grad is not None and quantizer.embedding.weight.grad.abs().max() > 0


def test_fed_tokens_are_corrected_by_later_scales(quantizer: Quantizer) -> None:
    latent = torch.randn(2, 8, 8, 8)
    wrong = lambda step, vectors, nearest: (nearest + 1) % 64 if step == 0 else nearest  # noqa: E731
    tokens, _, residual = quantizer.encode(latent)
    fed_tokens, _, fed_residual = quantizer.encode(latent, wrong)
    assert torch.equal(tokens[0], fed_tokens[0])  # the target stays the nearest entry
    assert not torch.equal(tokens[1], fed_tokens[1])  # what follows starts from what was fed
    assert not torch.allclose(residual, fed_residual)


def test_use_counts_every_scale_alike() -> None:
    use = CodebookUse(4, decay=0.0)
    use.count([torch.tensor([[0]]), torch.tensor([[1, 1, 2, 2]])])
    assert use.hits.tolist() == pytest.approx([2.0, 1.0, 1.0, 0.0])


def test_unused_entries_are_revived() -> None:
    use = CodebookUse(4, decay=0.0)
    use.count([torch.tensor([[0, 1, 2, 2]])])
    codebook, residuals = torch.zeros(4, 2), torch.full((5, 2), 7.0)
    assert use.revive(codebook, residuals, below=0.1) == 1
    assert codebook[3].tolist() == [7, 7] and codebook[:3].abs().max() == 0
    assert use.hits[3] == 1 and use.revive(codebook, residuals, below=0.1) == 0


def test_usage() -> None:
    assert usage([torch.tensor([[0]]), torch.tensor([[0, 1, 1, 3]])], 4) == [0.25, 0.75]
