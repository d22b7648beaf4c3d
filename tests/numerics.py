"""How close is close enough. Bounds come from the dtype and from plain torch in it, never from trial and error."""

import torch
from torch import Tensor


def relative_error(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖ in float64; 0 for two empty or two zero tensors, inf where only b is zero."""
    assert a.shape == b.shape, f"shape {tuple(a.shape)}, expected {tuple(b.shape)}"
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    error, size = (a - b).norm().item(), b.norm().item()
    if size == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / size


def assert_accurate(
    actual: Tensor,
    eager: Tensor,
    exact: Tensor,
    *,
    rms_slack: float | None = None,
    least_eps: float = 0.0,
    what: str = "output",
) -> None:
    """Hold a kernel to float64 truth, allowing only what plain torch in the same dtype gets wrong too.

    actual: the kernel's result. eager: the op's reference in the same dtype. exact: the reference in float64 on the
    same, already rounded, inputs.
    Bound 1: max|actual − exact| ≤ 2·max|eager − exact| + eps·max|exact|, eps the dtype's or least_eps.
    Bound 2, with rms_slack (1.1) for a 16-bit kernel that rounds once, at its end: rms(actual − exact) ≤
    rms_slack·rms(round(exact) − exact). It finds a second rounding inside, which bound 1 lets through.
    """
    assert exact.dtype == torch.float64, f"{what}: exact must be float64, got {exact.dtype}"
    assert eager.dtype == actual.dtype, f"{what}: eager is {eager.dtype}, actual is {actual.dtype}"
    for name, tensor in (("actual", actual), ("eager", eager)):
        assert tensor.shape == exact.shape, f"{what}: {name} is {tuple(tensor.shape)}, exact is {tuple(exact.shape)}"
    if exact.numel() == 0:
        return
    bad = int((~torch.isfinite(actual.double())).sum())
    assert bad == 0, f"{what} ({actual.dtype}): {bad} of {actual.numel()} values are not finite"

    error = (actual.double() - exact).abs()
    eps = max(torch.finfo(actual.dtype).eps, least_eps)
    bound = 2 * (eager.double() - exact).abs().max() + eps * exact.abs().max()
    at = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    assert error.max() <= bound, (
        f"{what} ({actual.dtype}): error {error.max():.3e} > {bound:.3e} at {at}: "
        f"got {actual[at].item():.7g}, exact {exact[at].item():.7g}"
    )
    if rms_slack is not None:
        rounding = rms(exact.to(actual.dtype).double() - exact)
        assert rms(error) <= rms_slack * rounding, (
            f"{what} ({actual.dtype}): RMS error {rms(error):.3e} > {rms_slack} × {rounding:.3e}, that of one rounding"
        )


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()
