"""The FP8 mode of the published model without a GPU: what it launches, and what its kernels compile to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from tests.aot.compile_all import is_fp8
from tests.aot.test_compile import compiled

SCRIPT = """
import json, sys, torch
from tests.aot.compile_all import is_fp8
from tests.aot.fake_gpu import fake_gpu
from tests.aot.published import DEVICE, fake_pipeline, fake_request, run_image
from varsr_engine.config import ModelConfig
from varsr_engine.engine.params import EngineConfig

MODES = {
    "none": {},
    "everywhere": {"quantization": "fp8"},
    "last steps": {"quantization": "fp8", "fp8_steps": "6-9", "fp8_layers": "1-22"},
}
counts = {}
with fake_gpu() as gpu:
    config, fp8 = ModelConfig.varsr_d24(), []
    gpu._on_kernel = lambda kernel, args, kwargs: is_fp8(kwargs) and fp8.append(kernel.fn.__name__)
    for mode, settings in MODES.items():
        pipeline = fake_pipeline(config, fp8=EngineConfig(**settings).fp8_switches(config))
        fp8.clear()
        lr = torch.empty(1, 3, 512, 512, device=DEVICE)
        with gpu.recording() as launches:
            run_image(pipeline, lr, fake_request(1))
        weights = pipeline._scale_loop.weights
        held = {id(t): t for block in (*weights.blocks, *weights.fp8_blocks) for linear in block[:1] + block[3:]
                for part in linear for t in ((part,) if isinstance(part, torch.Tensor) else part)}
        counts[mode] = {
            "total": launches.total,
            "fp8": {name: fp8.count(name) for name in set(fp8)},
            "block_bytes": sum(t.nbytes for t in held.values()),
        }
json.dump(counts, sys.stdout)
"""
LAYERS, STEPS = 24, 10
# A call of this op in a quantized block: adaln before qkv and before fc1, and fc2 of the two gated_residuals.
FP8_CALLS = {"adaln": 2, "qkv_norm_rope_cache": 1, "mlp": 1, "gated_residual": 1}


@cache
def dry_run() -> dict[str, Any]:
    """Launches of an image by mode. In a process of its own: here kernels are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", ["everywhere", "last steps"])
def test_fp8_takes_no_more_launches(mode: str) -> None:
    assert dry_run()[mode]["total"] <= dry_run()["none"]["total"], dry_run()


@pytest.mark.parametrize(("mode", "blocks"), [("none", 0), ("everywhere", LAYERS * STEPS), ("last steps", 22 * 4)])
def test_fp8_kernels_run_where_they_are_switched_on(mode: str, blocks: int) -> None:
    expected = {f"{name}_fwd_kernel": calls * blocks for name, calls in FP8_CALLS.items()} if blocks else {}
    assert dry_run()[mode]["fp8"] == expected


def test_weights_take_half_the_memory_unless_steps_differ() -> None:
    """Of a block's 12 C^2 weights 11 C^2 become bytes; switched by step, 22 of 24 layers hold both."""
    C, runs = 1536, dry_run()
    weights = {"none": 24 * 12 * 2, "everywhere": 24 * (11 + 2), "last steps": 24 * 12 * 2 + 22 * 11}
    for mode, expected in weights.items():
        assert runs[mode]["block_bytes"] == pytest.approx(expected * C * C, rel=0.003)  # and scales and biases


@pytest.mark.slow
def test_hopper_multiplies_fp8_in_fp8() -> None:
    """Where Triton has Hopper's instruction, of 64 rows of X or of W; a few narrow tiles multiply in 16 bits."""
    products = {n: v for n, v in compiled(90).items() if "GROUP=" in n}
    assert products
    for name, values in products.items():
        wide = "SWAP=True" in name or not any(f"BLOCK_M={m}," in name for m in (16, 32))
        assert values.get("UTMALDG") and values.get("QGMMA" if wide else "HMMA"), (name, values)


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "name"), [(90, "QGMMA"), (89, "QMMA")])
def test_tensor_cores_add_up_128_terms_and_no_more(arch: int, name: str) -> None:
    """Of the instructions, 32 terms each, every fourth starts a new sum: the float32 total is kept outside."""
    counts = {n: (v[name], v[f"{name} from 0"]) for n, v in compiled(arch).items() if name in v}
    assert counts and all(all_of_them == 4 * first for all_of_them, first in counts.values()), counts


@pytest.mark.slow
def test_ada_multiplies_fp8_in_fp8() -> None:
    products = {n: v for n, v in compiled(89).items() if "GROUP=" in n}
    assert products and all(v.get("QMMA") and v.get("LDGSTS") for v in products.values()), products


def test_fp8_kernels_are_told_by_their_constants() -> None:
    assert is_fp8({"GROUP": 0}) and is_fp8({"QUANTIZED": True})
    assert not is_fp8({"QUANTIZED": False}) and not is_fp8({"BLOCK_M": 128})
