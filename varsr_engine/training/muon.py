"""Muon for matrices and convolutions, AdamW for everything else, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


def orthogonalise(update: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Nearly the orthogonal factor of a matrix (m, n): its singular values become about 1.

    Newton-Schulz with the quintic of K. Jordan, "Muon: an optimizer for hidden layers" (2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update / (update.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.t()
    for _ in range(iterations):
        gram = x @ x.t()
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.t() if tall else x


class Muon(torch.optim.Optimizer):
    """Steps of the same size along every direction of a matrix: what is rare in the data is learnt as fast as the rest.

    Groups with `muon` True hold matrices and convolution kernels (as matrices, out x in k k): momentum with Nesterov's
    correction, orthogonalised, times 0.2 sqrt(longer side), so that an element moves about as far as with AdamW and one
    learning rate serves both (Moonlight, arXiv 2502.16982, section 2.2). Other groups take AdamW steps.
    Groups with `keep_norm` True hold kernels whose size a later normalisation takes away, so that it would only ever
    grow: each is scaled back to the norm it started with after every step.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        momentum: float = 0.95,
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "momentum": momentum, "eps": eps, "weight_decay": 0.0}
        defaults |= {"muon": False, "keep_norm": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                norm = p.norm() if group["keep_norm"] else None
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(self._muon(p, group) if group["muon"] else self._adam(p, group), alpha=-group["lr"])
                if norm is not None:
                    p.mul_(norm / p.norm())
        return loss

    def _muon(self, p: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        state, grad = self.state[p], p.grad
        assert grad is not None
        if not state:
            state["momentum"] = torch.zeros_like(p)
        momentum = state["momentum"].lerp_(grad, 1 - group["momentum"])
        update = orthogonalise(grad.lerp(momentum, group["momentum"]).flatten(1))
        return update.mul_(0.2 * max(update.shape) ** 0.5).view_as(p)

    def _adam(self, p: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        state, grad, (beta1, beta2) = self.state[p], p.grad, group["betas"]
        assert grad is not None
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        mean = state["mean"].lerp_(grad, 1 - beta1) / (1 - beta1 ** state["step"].item())
        square = state["square"].lerp_(grad.square(), 1 - beta2) / (1 - beta2 ** state["step"].item())
        return mean / (square.sqrt() + group["eps"])
