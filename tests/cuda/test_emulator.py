"""The emulator itself: it must round as a GPU does, and notice what a GPU would leave undefined."""

from __future__ import annotations

import ctypes
import functools

import pytest
import torch

from tests.cuda import emulation

pytestmark = pytest.mark.skipif(emulation.why_not() is not None, reason=f"not emulated: {emulation.why_not()}")
NO_FAULT, NO_BARRIER, HALF_AT_BARRIER, HALF_AT_SHUFFLE, OVERRUN, UNWRITTEN = range(6)


@functools.cache
def probe() -> ctypes.CDLL:
    loaded = ctypes.CDLL(
        str(emulation.library("probe", [emulation.HOST / "probe.cu", emulation.HOST / "emulator.cpp"]))
    )
    loaded.probe_failure.restype = ctypes.c_char_p
    return loaded


def pointer(t: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(t.data_ptr())


def mirror(fault: int, order: int = 0) -> torch.Tensor | str:
    """The kernel's result, or why it failed."""
    x, out = torch.arange(64.0), torch.full((64,), -1.0)
    probe().emulator_order(order)
    if probe().probe_mirror(pointer(x), pointer(out), fault) == 0:
        return out
    return probe().probe_failure().decode()


@pytest.mark.parametrize("order", emulation.ORDERS)
def test_barriers_and_shuffles(order: int) -> None:
    result = mirror(NO_FAULT, order)
    assert isinstance(result, torch.Tensor) and torch.equal(result, torch.arange(64.0).flip(0))


def test_a_missing_barrier_changes_the_result_with_the_order() -> None:
    results = [mirror(NO_BARRIER, order) for order in emulation.ORDERS]
    assert not all(emulation.same_bits(results[0], other) for other in results[1:])


def test_memory_that_nobody_wrote_is_not_a_number() -> None:
    result = mirror(UNWRITTEN)
    assert isinstance(result, torch.Tensor) and result[58].isnan() and result[57] == 6


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (
            HALF_AT_BARRIER,
            "threads wait for others that never come: 32 at a barrier, 0 at a shuffle, 32 have ended, of 64",
        ),
        (
            HALF_AT_SHUFFLE,
            "threads wait for others that never come: 0 at a barrier, 32 at a shuffle, 32 have ended, of 64",
        ),
        (OVERRUN, "a block wrote behind its shared memory"),
    ],
)
def test_faults_fail_the_launch(fault: int, reason: str) -> None:
    assert mirror(fault) == reason
    assert isinstance(mirror(NO_FAULT), torch.Tensor)  # and the next one runs


def test_conversions_are_torch_s() -> None:
    """All float16 values widened; float32 values, ties and subnormal results among them, rounded."""
    half = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    bits = torch.randint(-(2**31), 2**31, (2**16,))
    bits[: 2**15] = (bits[: 2**15] & ~0x1FFF) | 0x1000  # halfway between neighbours in float16
    bits[: 2**14] = (bits[: 2**14] & ~0x7F800000) | (torch.randint(98, 144, (2**14,)) << 23)  # float16's exponents
    x = bits.to(torch.int32).view(torch.float32)
    wide, to_half, to_bfloat16 = torch.empty(2**16), half.clone(), half.view(torch.bfloat16).clone()
    probe().probe_convert(*map(pointer, (half, wide, x, to_half, to_bfloat16)), 2**16)
    for mine, truth in ((wide, half.float()), (to_half, x.half()), (to_bfloat16, x.bfloat16())):
        assert torch.equal(mine.nan_to_num(nan=7.0), truth.nan_to_num(nan=7.0))
        assert torch.equal(mine.isnan(), truth.isnan())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_tensor_cores_layout(dtype: torch.dtype) -> None:
    """Fragments laid out by PTX's tables for mma.m16n8k16, written here a second time, give the product."""
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 8).to(dtype)
    lane = torch.arange(32)
    g, t = lane // 4, lane % 4
    pair = torch.arange(2)
    rows = torch.stack((g, g + 8, g, g + 8), dim=1)[..., None]
    columns = (2 * t[:, None] + torch.tensor([0, 0, 8, 8]))[..., None] + pair
    fragments_a = a[rows, columns].contiguous()
    fragments_b = b[(2 * t[:, None] + torch.tensor([0, 8]))[..., None] + pair, g[:, None, None]].contiguous()
    d = torch.empty(32, 4)
    assert probe().probe_product(*map(pointer, (fragments_a, fragments_b, d)), int(dtype == torch.bfloat16)) == 0
    product = torch.empty(16, 8)
    product[torch.stack((g, g, g + 8, g + 8), dim=1), 2 * t[:, None] + torch.tensor([0, 1, 0, 1])] = d
    assert (product - a.float() @ b.float()).abs().max() <= 1e-5
