"""The CUDA kernels at shapes of the published model, and at the edges of what each takes. The rest of their tests are
those of every backend, in tests/kernels/."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernels import (
    test_adaln,
    test_groupnorm_silu,
    test_guided_sample,
    test_qkv_norm_rope_cache,
    test_refiner_update,
    test_scale_handoff,
)
from tests.kernels.harness import DEVICE, check, each_dtype, normal, run_case
from varsr_engine.kernels import adaln, groupnorm_silu, guided_sample, philox_normal, refiner_update
from varsr_engine.kernels.cuda_backend import dtype_code, launch
from varsr_engine.kernels.refiner_update import Noise

HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("C", [1536, 4, 128, 1024, 1028, 4096])
def test_adaln_in_float32(C: int) -> None:
    """A thread's own vector, a whole block's, one more than it, and the widest row."""
    check(adaln, test_adaln.inputs(2, 2, C, torch.float32), backend="cuda", formula=test_adaln.formula)


@each_dtype(*HALVES)
@pytest.mark.parametrize("C", [1536, 8, 2048, 2056, 8192])
def test_adaln_from_float32(C: int, dtype: torch.dtype) -> None:
    args = test_adaln.inputs(1, 3, C, torch.float32)
    out = torch.empty_like(args[0], dtype=dtype)
    check(adaln, args, {"out": out}, backend="cuda", formula=test_adaln.formula, rounds_once=True, roundings=0.5)


def test_adaln_with_rows_of_a_table() -> None:
    """The engine's scale and shift: slices of a table, of one row each, where strides of a broadcast may be 0."""
    table = normal(1, 6, 64)
    args = (normal(2, 3, 64), table[:, 1].expand(2, 64), table[:, 4].expand(2, 64))
    check(adaln, args, backend="cuda", formula=test_adaln.formula)


@each_dtype()
@pytest.mark.parametrize(("H", "D"), [(24, 64), (1, 128), (3, 8)])
def test_qkv_heads(dtype: torch.dtype, H: int, D: int) -> None:
    """The published 24 heads of 64; the widest head of float32; a head of one thread."""
    size = (2, 3 if H == 24 else 9, H, D, 12, 2)
    function, formula = test_qkv_norm_rope_cache.written, test_qkv_norm_rope_cache.formula
    check(function, test_qkv_norm_rope_cache.inputs(*size, dtype), {"num_queries": 2}, backend="cuda", formula=formula)


@each_dtype()
@pytest.mark.parametrize("V", [4096, 4095, 3])
def test_guided_logits_of_the_vocabulary(dtype: torch.dtype, V: int) -> None:
    args = test_guided_sample.inputs(1, 3, 32, V, dtype)
    logits = check(test_guided_sample.logits_of, args, backend="cuda", formula=test_guided_sample.formula)
    tokens, _ = run_case(guided_sample, args, None, "cuda")
    assert torch.equal(tokens, logits.argmax(-1))


@pytest.mark.parametrize("V", [4096, 4094])
def test_argmax_of_ties_across_threads(V: int) -> None:
    """The lowest index wins wherever the threads and warps of its equals are."""
    x = torch.full((1, 6, V), -7.0)
    for row, places in enumerate(([4, 3], [V - 1, 2049, 1025], [1100, 1099, 4], [700, 60], [V - 1], [0, V - 1])):
        x[0, row, places] = 2.0
    cond, weight, bias = torch.zeros(1, 6, 8), torch.zeros(V, 8), torch.zeros(V)
    cond[0, :, :6], weight[:, :6] = torch.eye(6), x[0].t()
    args = (cond, None, torch.zeros(1), weight, bias)
    tokens, _ = run_case(guided_sample, tuple(a if a is None else a.to(DEVICE) for a in args), None, "cuda")
    assert tokens.tolist() == [[3, 1025, 4, 60, V - 1, 0]]


def test_argmax_of_zeros() -> None:
    """-0 is equal to 0: the kernel by itself, as no product ends in -0."""
    logits, bias = torch.full((1, 64), -1.0, device=DEVICE), torch.full((64,), -0.0, device=DEVICE)
    logits[0, 60], logits[0, 7] = 0.0, -0.0

    def tokens(logits: torch.Tensor, bias: torch.Tensor, backend: str) -> torch.Tensor:
        found = torch.empty(1, dtype=torch.int64, device=DEVICE)
        launch("bias_argmax", DEVICE, logits, bias, found, 1, 64, dtype_code(bias.dtype))
        return found

    assert run_case(tokens, (logits, bias), None, "cuda").tolist() == [7]


def test_argmax_of_not_a_number() -> None:
    """As torch's argmax: NaN is above everything, and shows in the logits."""
    args = list(test_guided_sample.inputs(1, 2, 8, 40, torch.float32))
    args[4] = args[4].clone()
    args[4][17] = torch.nan
    tokens, logits = run_case(guided_sample, tuple(args), None, "cuda")
    assert tokens.tolist() == [[17, 17]] and logits[..., 17].isnan().all()


@each_dtype()
@pytest.mark.parametrize("timestep", [333, 0])
@pytest.mark.parametrize(("N", "W", "Z"), [(9, 1024, 32), (3, 288, 64), (17, 256, 8)])
def test_refiner_update_sizes(dtype: torch.dtype, timestep: int, N: int, W: int, Z: int) -> None:
    """Weak guidance late in the schedule: the clamp leaves enough elements for a bound to mean something."""
    args = test_refiner_update.inputs(1, N, W, Z, timestep, dtype, guidance=0.5)
    check(refiner_update, args, backend="cuda", formula=test_refiner_update.formula)


@each_dtype(torch.float32, torch.float16)
@pytest.mark.parametrize("per_image", [False, True])
def test_refiner_update_draws_its_noise(dtype: torch.dtype, per_image: bool) -> None:
    """Philox inside the kernel is `philox_normal` before it, bit for bit."""
    *args, _ = test_refiner_update.inputs(2, 9, 64, 16, 555, dtype)
    seeds = torch.tensor([5, 2**40 + 3], device=DEVICE)
    positions = torch.arange(1 << 16, (1 << 16) + 9, device=DEVICE)
    if per_image:
        positions = torch.stack((positions, positions + 7))
    std = torch.tensor([0.5, 1.25], device=DEVICE)
    noise = run_case(philox_normal, (seeds, positions, 16), {"step": 3, "stream": 1, "std": std}, "cuda")
    given = run_case(refiner_update, (*args, noise), None, "cuda")
    drawn = run_case(refiner_update, (*args, Noise(seeds, positions, 3, 1, std)), None, "cuda")
    assert torch.equal(given, drawn)


@each_dtype()
@pytest.mark.parametrize("size", [(1, 640, 6, 6, 32), (2, 320, 9, 7, 32), (1, 160, 16, 13, 32)], ids=str)
def test_groupnorm_channels(dtype: torch.dtype, size: tuple[int, ...]) -> None:
    """The decoder's widths: groups of 20, 10 and 5 channels, which a thread's 8 channels straddle."""
    *shape, groups = size
    args = (*test_groupnorm_silu.inputs(*shape, dtype, torch.channels_last), groups)
    check(groupnorm_silu, args, backend="cuda", formula=test_groupnorm_silu.formula, rounds_once=True)


@each_dtype(torch.float32, torch.float16)
def test_groupnorm_merges_uneven_chunks(dtype: torch.dtype) -> None:
    """Several chunks, the last one shorter, over which the mean drifts by many deviations."""
    x, weight, bias = test_groupnorm_silu.inputs(2, 64, 41, 30, dtype, torch.channels_last)
    x += torch.arange(41, device=x.device, dtype=dtype)[:, None] / 4
    args = (x, weight, bias, 8)
    check(groupnorm_silu, args, backend="cuda", formula=test_groupnorm_silu.formula, rounds_once=True)


@pytest.mark.parametrize("size", [(1, 24, 32, 32, 64, 32, 520), (2, 1, 2, 32, 64, 32, 64), (1, 18, 24, 32, 64, 32, 64)])
def test_handoff_sides(size: tuple[Any, ...]) -> None:
    function, formula = test_scale_handoff.both, test_scale_handoff.formula
    check(function, test_scale_handoff.inputs(*size, torch.float32), backend="cuda", formula=formula)
