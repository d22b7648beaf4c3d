"""The optimiser: orthogonal steps for matrices, AdamW's for the rest."""

from __future__ import annotations

import pytest
import torch

from varsr_engine.training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(8, 8), (4, 30), (30, 4)])
def test_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.3 and values.max() < 1.3


def test_orthogonalise_keeps_the_singular_vectors() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(6, 6)
    u, _, vh = torch.linalg.svd(matrix)
    rotated = u.t() @ orthogonalise(matrix) @ vh.t()
    assert (rotated - torch.diag(rotated.diagonal())).abs().max() < 1e-4


def test_vectors_take_the_steps_of_adamw() -> None:
    torch.manual_seed(0)
    ours = torch.randn(5, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    optimizers = [
        Muon([{"params": [ours], "weight_decay": 0.1}], lr=0.01),
        torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1),
    ]
    for _ in range(5):
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            (p - 1).pow(4).sum().backward()
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_convolution_moves_as_a_matrix() -> None:
    torch.manual_seed(0)
    kernel = torch.zeros(4, 3, 3, 3, requires_grad=True)
    kernel.grad = torch.randn_like(kernel)
    gradient = kernel.grad.clone()
    Muon([{"params": [kernel], "muon": True}], lr=1.0).step()
    expected = -orthogonalise(gradient.flatten(1)) * 0.2 * 27**0.5
    assert torch.allclose(kernel.detach().flatten(1), expected, atol=1e-4)


def test_a_kernel_keeps_its_norm_if_asked() -> None:
    torch.manual_seed(0)
    kernel = torch.randn(8, 4, 3, 3, requires_grad=True)
    norm, before = kernel.norm().item(), kernel.detach().clone()
    optimizer = Muon([{"params": [kernel], "muon": True, "keep_norm": True}], lr=0.1)
    for _ in range(3):
        kernel.grad = torch.randn_like(kernel)
        optimizer.step()
    assert kernel.norm().item() == pytest.approx(norm, rel=1e-5)
    assert not torch.allclose(kernel, before, atol=1e-2)
