"""Gaussian noise from a counter-based generator, independent of batch, order and device."""

from __future__ import annotations

import torch

from varsr_engine.dispatch import Op
from varsr_engine.kernels import cuda_backend
from varsr_engine.kernels.philox import cpu_kernel
from varsr_engine.kernels.philox.reference import philox_normal_reference
from varsr_engine.kernels.spec import check_dtype, check_ndim, check_shape
from varsr_engine.kernels.triton_backend import lazily

_op = Op("philox_normal")
_op.register("torch", philox_normal_reference)
_op.register("cpu", cpu_kernel.philox_normal_cpu, cpu_kernel.why_not)
_op.register("triton", *lazily("varsr_engine.kernels.philox.triton_kernel", "philox_normal_triton"))
_op.register(
    "cuda",
    *cuda_backend.lazily("varsr_engine.kernels.philox.cuda_kernel", "philox_normal_cuda"),
    automatic=cuda_backend.MEASURED,
)


def philox_normal(
    seeds: torch.Tensor,
    positions: torch.Tensor,
    count: int,
    *,
    step: int | range,
    stream: int,
    std: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """noise[b, n, e] = normal(Philox4x32-10(key = seeds[b], counter = (e // 4, positions[b, n], step, stream)))[e % 4].

    seeds (B,) int64; positions (B, N), or (N,) for all rows, int64 in [0, 2^32); result (B, N, count) float32, by the
    Box-Muller transform; times std[b] if std (B,) float32 is given. A range of steps, one after the other, gives all of
    their noise: (steps, B, N, count).
    Source: Salmon et al., SC 2011; the float mapping is that of Triton's `tl.randn4x`.
    """
    check_ndim("philox_normal", "seeds", seeds, "(B,)", 1)
    if positions.ndim == 2:
        check_shape("philox_normal", "positions", positions, "(B, N)", (seeds.shape[0], positions.shape[1]))
    else:
        check_ndim("philox_normal", "positions", positions, "(N,) or (B, N)", 1)
    for name, t in (("seeds", seeds), ("positions", positions)):
        if t.dtype != torch.int64:
            raise TypeError(f"philox_normal: {name} must be torch.int64, got {t.dtype}")
    if std is not None:
        check_shape("philox_normal", "std", std, "(B,)", (seeds.shape[0],))
        check_dtype("philox_normal", "std", std, torch.float32, "the result")
    steps = step if isinstance(step, range) else range(step, step + 1)
    if steps.step != 1:
        raise ValueError(f"philox_normal: step must be a number or a range of step 1, got {step}")
    result: torch.Tensor = _op(seeds, positions, count, steps, stream, std, backend=backend)
    return result if isinstance(step, range) else result[0]
