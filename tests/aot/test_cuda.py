"""Every CUDA kernel compiles for both architectures, without spills, to what the table says. Needs nvcc, no GPU."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest

from tests.aot.cuda_table import TABLE, build_cuda, nvcc_version, report

NVCC = build_cuda().find_nvcc()
# Seconds where the installation left its objects in build/cuda, else a minute or two of nvcc.
pytestmark = pytest.mark.skipif(NVCC is None, reason="there is no nvcc")
each_arch = pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
GROWTH = 1.1  # of registers, against the table: more is a change to look at


@cache
def compiled() -> dict[str, dict[str, dict[str, Any]]]:
    """Fails where ptxas warns that it ignored setmaxnreg (C7508): see csrc/build_cuda.py."""
    assert NVCC is not None
    return report(NVCC)


@each_arch
def test_no_kernel_spills(arch: str) -> None:
    spilled = {name: v for name, v in compiled()[arch].items() if v["spills"] or v.get("LDL/STL")}
    assert compiled()[arch] and spilled == {}


@each_arch
def test_the_table_is_of_these_kernels(arch: str) -> None:
    """`python -m tests.aot.cuda_table --write` renews it."""
    assert NVCC is not None
    table, found = json.loads(TABLE.read_text()), compiled()[arch]
    assert sorted(table[arch]) == sorted(found)
    if table["nvcc"] == nvcc_version(NVCC):
        grown = {n: (v["registers"], found[n]["registers"]) for n, v in table[arch].items()}
        assert {n: pair for n, pair in grown.items() if pair[1] > GROWTH * pair[0]} == {}


@each_arch
def test_rows_move_sixteen_bytes_at_a_time(arch: str) -> None:
    names = ("adaln", "qkv_epilogue", "guidance", "bias_argmax", "refiner_update", "group_", "handoff_pool")
    rows = {n: v for n, v in compiled()[arch].items() if n.startswith(names)}
    assert rows and {n: v for n, v in rows.items() if not v.get("LDG.128")} == {}
    assert {n: v for n, v in rows.items() if not v.get("STG.128") and "moments" not in n} == {}


@each_arch
def test_sixteen_bit_products_use_tensor_cores(arch: str) -> None:
    products = {n: v for n, v in compiled()[arch].items() if n.startswith("refiner_update_kernel<__")}
    assert products and all(v.get("HMMA") for v in products.values())


def test_products_have_hopper_s_instructions_and_all_registers() -> None:
    """TMA and wgmma. A warpgroup takes registers from those of the launch: it waits for ever where these are fewer."""
    products = {n: v for n, v in compiled()["sm_90a"].items() if n.startswith("product_sm90_kernel")}
    assert len(products) == 38
    for name, values in products.items():
        assert values["UTMALDG"] and values["QGMMA" if "e4m3" in name else "HGMMA"] >= 4, name
        two_consumers = re.search(r"Tile<\w+, 2, ", name) is not None
        assert values["registers"] == (168 if two_consumers else 128), name


def test_kernels_that_may_start_early_wait_before_they_touch_memory() -> None:
    """Programmatic dependent launch: no load may be moved ahead of the wait, constant or not."""
    assert {n: v for n, v in compiled()["sm_90a"].items() if not v["waits first"]} == {}
