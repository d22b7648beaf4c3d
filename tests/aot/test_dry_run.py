"""The published model's image without a GPU: no wait for the host, no control flow on values, few launches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

SCRIPT = """
import json, sys, torch
from tests.aot.fake_gpu import fake_gpu
from tests.aot.published import DEVICE, fake_pipeline, fake_request, run_image, stage_peaks
from varsr_engine.config import ModelConfig
from varsr_engine.engine.memory import memory_plan

counts, memory = {}, {}
with fake_gpu() as gpu:
    pipeline = fake_pipeline(ModelConfig.varsr_d24())
    for name, batch, greedy in (("one", 1, True), ("eight", 8, True), ("sampled", 1, False)):
        lr = torch.empty(batch, 3, 512, 512, device=DEVICE)
        with gpu.recording() as launches:
            images = run_image(pipeline, lr, fake_request(batch, greedy=greedy))
        assert images.shape == (batch, 3, 512, 512)
        if greedy:
            plan = memory_plan(pipeline.config, {}, batch, torch.float16)
            with gpu.recording():  # in cuDNN's layouts
                memory[name] = {"peaks": stage_peaks(pipeline, lr, fake_request(batch)), "plan": plan.stages}
        counts[name] = {"triton": dict(launches.triton), "torch": dict(launches.torch), "total": launches.total}
json.dump({"counts": counts, "memory": memory}, sys.stdout)
"""
BLOCKS = 24 * 10
BLOCK_KERNELS = ("qkv_norm_rope_cache", "scale_attention", "gated_residual", "mlp")


@cache
def dry_run() -> dict[str, Any]:
    """Launches of an image by batch, and its memory. In a process of its own: here kernels are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def counts() -> dict[str, Any]:
    return dry_run()["counts"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("case", "most"), [("one", 2200), ("eight", 2300), ("sampled", 2300)])
def test_an_image_takes_few_launches(case: str, most: int) -> None:
    """13,055 in the published code."""
    assert counts()[case]["total"] <= most, counts()[case]


def test_a_block_takes_seven_launches() -> None:
    triton = counts()["one"]["triton"]
    adaln = triton["adaln_fwd_kernel"] - 10  # one a scale before the head
    others = sum(n for name, n in triton.items() if name.startswith(BLOCK_KERNELS))
    assert adaln + others <= 7 * BLOCKS, triton


def test_nothing_heavy_is_left_to_single_operators() -> None:
    """Products and attention of the scale loop are our kernels; torch keeps convolutions and a few products."""
    torch_ops = counts()["one"]["torch"]
    assert torch_ops.get("scaled_dot_product_attention", 0) == 0
    assert torch_ops.get("layer_norm", 0) <= 1
    assert torch_ops.get("addmm", 0) + torch_ops.get("linear", 0) <= 10 + 1 + 8  # modulations, cond_embed, decoder


@pytest.mark.parametrize("case", ["one", "eight"])
def test_memory_is_what_was_planned(case: str) -> None:
    """The plan's formulas against every tensor that the engine's own code makes, stage by stage."""
    peaks, plan = dry_run()["memory"][case]["peaks"], dry_run()["memory"][case]["plan"]
    assert peaks.keys() == plan.keys()
    for stage, peak in peaks.items():
        assert 0.95 * peak <= plan[stage] <= 1.1 * peak, (stage, peak, plan[stage])
