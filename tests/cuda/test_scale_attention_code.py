"""The machine code of scale_attention's kernels: what the design counts on, and ptxas could undo. Needs nvcc."""

from __future__ import annotations

import re
from functools import cache

import pytest

from tests.aot.cuda_table import OBJECTS, build_cuda, first, instructions

NVCC = build_cuda().find_nvcc()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(NVCC is None, reason="there is no nvcc")]
LAST_BUT_ONE, ALL = r"WARPGROUP\.DEPBAR\.LE gsb0, 0x1", r"WARPGROUP\.DEPBAR\.LE gsb0, 0x0"


@cache
def compiled(source: str, arch: str) -> tuple[dict[str, list[str]], str]:
    """The instructions of each kernel, and what ptxas said."""
    assert NVCC is not None
    builder = build_cuda()
    target = builder.compile_object(NVCC, builder.FOLDER / source, OBJECTS)
    return instructions(target, arch, builder), target.with_suffix(".log").read_text()


def count(lines: list[str], pattern: str) -> int:
    return sum(bool(re.search(pattern, line)) for line in lines)


def test_hopper_s_products_overlap_the_softmax() -> None:
    """wgmma with queries and weights in registers, not one after the other (C7513), and weights before values' end."""
    kernels, said = compiled("scale_attention_sm90.cu", "sm_90a")
    assert len(kernels) == 4 and "C7513" not in said
    for name, lines in kernels.items():
        # Scores of the first block and of the others, four steps of 16 columns; values of all and of the last, eight.
        assert count(lines, r"HGMMA\.64x128x16") == 8 and count(lines, r"HGMMA\.64x64x16.*tnspB") == 16, name
        loop = lines[first(lines, LAST_BUT_ONE) :]
        assert count(loop[: first(loop, ALL)], r"MUFU\.EX2") >= 64, name


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_small_tiles(arch: str) -> None:
    """Blocks by cp.async, operands by ldmatrix, values transposed on the way."""
    kernels, _ = compiled("scale_attention.cu", arch)
    assert len(kernels) == 8
    for name, lines in kernels.items():
        keys = 16 if name.endswith("1>") else 64  # of a block that a warp takes
        assert count(lines, r"\bHMMA") == keys, name
        assert count(lines, r"LDSM\.16\.M88\.4") == count(lines, r"LDSM\.16\.MT88\.4") == keys / 4, name
        assert count(lines, r"LDGSTS\.E\.BYPASS.*128") >= 16, name
