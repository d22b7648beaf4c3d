"""scale_attention's CUDA kernels, emulated, at heads of 64: both tiles of mma.sync, and Hopper's, which no op takes.

Processors stand for multiprocessors: few give ranges of several tiles, many give tiles that several ranges share.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cuda import emulation
from tests.cuda.test_product_sm90 import HALVES, in_every_order
from tests.kernels.test_scale_attention import formula, inputs, unit_rows
from tests.numerics import assert_accurate
from varsr_engine.kernels import scale_attention
from varsr_engine.kernels.scale_attention import LARGEST_STATIC_BOUND, cuda_kernel
from varsr_engine.kernels.scale_attention.cuda_kernel import FEW, HOPPER, MANY, Kernel, work_of

pytestmark = [
    pytest.mark.skipif(emulation.why_not() is not None, reason=f"not emulated: {emulation.why_not()}"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the emulator's tensors are on a CPU"),
]
KERNELS = {"few": FEW, "many": MANY, "hopper": HOPPER}
each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
modes = pytest.mark.parametrize("bounded", [True, False], ids=["bound", "maximum"])
# B, H, L, S, processors
SIZES = {
    "one": (1, 1, 1, 1, 132),
    "tails": (1, 2, 17, 70, 132),
    "whole": (1, 1, 16, 128, 132),
    "two_batches": (2, 2, 5, 65, 1),
    "ranges_of_tiles": (1, 3, 67, 70, 1),  # a ring goes round within one range
    "shared_tiles": (1, 2, 130, 300, 1),
    "unit_a_range": (1, 1, 3, 705, 132),
}


def attended(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, bound: Tensor | None, processors: int) -> Tensor:
    def run() -> Tensor:
        out = torch.empty(q.shape[0], q.shape[2], q.shape[1] * 64, dtype=q.dtype)
        cuda_kernel.run(kernel, q, k, v, out, bound, processors)
        return out

    result = in_every_order(run)
    assert not any(cuda_kernel.counters(1, q.device))  # as the next launch needs them
    return result  # type: ignore[no-any-return]


def check(result: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
    exact = formula(q.double(), k.double(), v.double())
    assert_accurate(result, scale_attention(q, k, v, backend="torch"), exact)


@HALVES
@each_kernel
@modes
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_sizes(kernel: Kernel, size: tuple[int, ...], dtype: torch.dtype, bounded: bool) -> None:
    B, H, L, S, processors = size
    q, k, v = inputs(B, H, L, S, 64, dtype)
    bound = torch.full((H,), 4.0) if bounded else None
    check(attended(kernel, q, k, v, bound, processors), q, k, v)


@each_kernel
@modes
def test_ring_over_many_blocks(kernel: Kernel, bounded: bool) -> None:
    """A range of two tiles, each with more blocks than the ring has stages, several times over."""
    q, k, v = inputs(1, 2, 3, 1400, 64, torch.float16)
    bound = torch.full((2,), 4.0) if bounded else None
    processors = 1
    assert work_of(HOPPER, 2, 3, 1400, processors).ranges == 1
    check(attended(kernel, q, k, v, bound, processors), q, k, v)


@each_kernel
@modes
def test_parts_add_up_in_the_order_of_keys(kernel: Kernel, bounded: bool) -> None:
    """Whoever comes last, which differs with the order of blocks: parts that cancel show another order of sums."""
    q, k, v = inputs(1, 1, 20, 705, 64, torch.float16)
    v += 1000 * (1 - 2 * (torch.arange(705) // 128 % 2))[:, None]
    bound = torch.full((1,), 4.0) if bounded else None
    attended(kernel, q, k, v, bound, 132)


@each_kernel
@HALVES
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_scores_at_the_bound(kernel: Kernel, dtype: torch.dtype, sign: float) -> None:
    """Every score at an end of [-bound, bound], each head with its own: weights neither overflow nor lose digits."""
    q, k, v = inputs(1, 2, 3, 200, 64, dtype, length=1.0)
    q, k = torch.zeros_like(q), torch.zeros_like(k)
    bound = torch.tensor([LARGEST_STATIC_BOUND, 0.5])
    q[..., 0], k[..., 0], v = bound.to(dtype)[None, :, None], sign, v.abs()
    check(attended(kernel, q, k, v, bound, 132), q, k, v)


@each_kernel
@HALVES
def test_saturated_softmax(kernel: Kernel, dtype: torch.dtype) -> None:
    """Scores of +-100; then one key takes everything, first, in the midst, and in the tail: exactly its value."""
    q, k, v = inputs(1, 2, 8, 150, 64, dtype, length=100.0)
    k[:, :, 3] = unit_rows(q[:, :, 0])
    check(attended(kernel, q, k, v, None, 2), q, k, v)
    q, k = torch.zeros_like(q), torch.zeros_like(k)
    q[..., 0] = 100.0
    for best in (0, 70, 149):
        k[..., 0] = -1.0
        k[:, :, best, 0] = 1.0
        result = attended(kernel, q, k, v, None, 2).unflatten(2, (2, 64))
        assert torch.equal(result, v[:, None, :, best].expand_as(result))


@each_kernel
@modes
def test_views(kernel: Kernel, bounded: bool) -> None:
    """Queries of a product's rows, the valid part of a cache with NaN behind it, a part of a wider result."""
    q, k, v = inputs(2, 2, 20, 90, 64, torch.float16)
    rows = torch.full((2, 20, 3, 2, 64), torch.nan, dtype=q.dtype)
    rows[:, :, 1] = q.transpose(1, 2)
    own_q = rows[:, :, 1].transpose(1, 2)
    own_k, own_v = (torch.cat((t, torch.full_like(t, torch.nan)), dim=2)[:, :, :90] for t in (k, v))
    bound = torch.full((2,), 4.0) if bounded else None

    def run() -> Tensor:
        whole = torch.full((2, 20, 256), 5.0, dtype=q.dtype)
        cuda_kernel.run(kernel, own_q, own_k, own_v, whole[:, :, 64:192], bound, 1)
        return whole

    whole = in_every_order(run)
    assert (whole[:, :, :64] == 5).all() and (whole[:, :, 192:] == 5).all()
    check(whole[:, :, 64:192], q, k, v)


@pytest.mark.parametrize(("L", "launched"), [(129, [FEW, HOPPER]), (145, [HOPPER]), (128, [HOPPER]), (3, [FEW])])
def test_few_queries_behind_whole_tiles(monkeypatch: pytest.MonkeyPatch, L: int, launched: list[Kernel]) -> None:
    """The class row of the first step does not take a tile of 128."""
    calls, run = [], cuda_kernel.run

    def noted(kernel: Kernel, *args: Any) -> None:
        calls.append(kernel)
        run(kernel, *args)

    monkeypatch.setattr(cuda_kernel, "run", noted)
    q, k, v = inputs(1, 1, L, L, 64, torch.float16)
    with emulation.on_cpu():
        result = cuda_kernel.scale_attention_hopper(q, k, v)
    assert calls == launched
    check(result, q, k, v)


def test_by_name() -> None:
    """The op's "cuda" is mma.sync, and wgmma a choice of its own, until that has run on a GPU."""
    assert not cuda_kernel.HOPPER_BY_NAME
    for L in (4, 40):
        q, k, v = inputs(1, 1, L, 50, 64, torch.float16)
        with emulation.on_cpu():
            result, empty = (scale_attention(t, k, v, backend="cuda") for t in (q, q[:, :, :0]))
            assert cuda_kernel.scale_attention_hopper(q[:, :, :0], k, v).shape == empty.shape == (1, 0, 64)
        check(result, q, k, v)


def test_reasons_of_hopper_s() -> None:
    q, k, v = inputs(1, 2, 64, 70, 64, torch.float16)
    assert cuda_kernel.why_not_hopper(q, k, v) is None
    assert "there are 4 queries: a tile has 128" in str(cuda_kernel.why_not_hopper(q[:, :, :4], k, v))
    assert "k is expanded" in str(cuda_kernel.why_not_hopper(q, k[:, :1].expand(1, 2, 70, 64), v))
    with emulation.on_cpu(), pytest.raises(RuntimeError, match=r"^scale_attention_sm90: cudaErrorInvalidValue"):
        cuda_kernel.run(HOPPER, q, k, v[:, :, :1].expand(1, 2, 70, 64), torch.empty(1, 64, 128).half(), None)


@pytest.mark.parametrize("processors", [1, 7, 108, 132])
@pytest.mark.parametrize(("L", "S"), [(1, 1), (4, 1029), (81, 1171), (1024, 1025), (576, 2240), (1024, 3264)])
@each_kernel
def test_work_is_even(kernel: Kernel, L: int, S: int, processors: int) -> None:
    """All units, in ranges that differ by one at most, none empty: a whole wave whatever the shape."""
    work = work_of(kernel, 48, L, S, processors)
    sizes = {work.begin(i + 1) - work.begin(i) for i in range(work.ranges)}
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    assert (work.begin(0), work.begin(work.ranges)) == (0, work.tiles * work.blocks)
    assert work.ranges <= kernel.resident * processors
