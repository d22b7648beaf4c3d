"""Every kernel of the published model compiles for both architectures, without spills, to what the table says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import triton

from tests.aot.compile_all import ARCHES, TABLE

pytestmark = pytest.mark.slow
LOOKUP = 32  # bytes of a table on the stack, in the library's sine and cosine for large angles: no spill
GROWTH = 1.1  # of registers, against the table: more is a change to look at


@cache
def compiled(arch: int) -> dict[str, dict[str, int]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.aot.compile_all", "--arch", str(arch)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout)[f"sm_{arch}"]  # type: ignore[no-any-return]


def table() -> dict[str, Any]:
    return json.loads(TABLE.read_text())  # type: ignore[no-any-return]


each_arch = pytest.mark.parametrize("arch", ARCHES)


@each_arch
def test_no_kernel_spills(arch: int) -> None:
    found = {name: values["spills"] for name, values in compiled(arch).items()}
    assert {name: size for name, size in found.items() if size > (LOOKUP if name.startswith("philox") else 0)} == {}


@each_arch
def test_the_table_is_of_these_kernels(arch: int) -> None:
    """`python -m tests.aot.compile_all --write` renews it."""
    expected, found = table()[f"sm_{arch}"], compiled(arch)
    assert sorted(expected) == sorted(found)
    if table()["triton"] == triton.__version__:
        grown = {n: (v["registers"], found[n]["registers"]) for n, v in expected.items()}
        assert {n: pair for n, pair in grown.items() if pair[1] > GROWTH * pair[0]} == {}


def test_large_products_use_hopper_s_tensor_cores_and_loads() -> None:
    """From 64 rows on: below, a product streams its weights, and the older instruction has smaller tiles."""
    products = {
        n: v for n, v in compiled(90).items() if "SWAP=" in n and "BLOCK_M=16" not in n and "BLOCK_M=32" not in n
    }
    assert products
    slow = {n for n, v in products.items() if not v.get("QGMMA" if "GROUP=" in n else "HGMMA") or not v.get("UTMALDG")}
    assert slow == set()


def test_older_gpus_get_their_tensor_cores_and_asynchronous_copies() -> None:
    products = {n: v for n, v in compiled(80).items() if "SWAP=" in n}
    assert {n: v for n, v in products.items() if not v.get("HMMA") or not v.get("LDGSTS")} == {}


@each_arch
def test_rows_move_sixteen_bytes_at_a_time(arch: int) -> None:
    rows = {n: v for n, v in compiled(arch).items() if n.startswith(("adaln", "modulated_norm", "guidance"))}
    assert rows and all(v.get("LDG.128") for v in rows.values()), rows
