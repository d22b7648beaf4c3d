"""How near an image comes to what the machine could do: every stage against ceilings measured in the same run.

    python -m benchmarks.roofline                      # varsr-mini
    python -m benchmarks.roofline --model d24          # the published shapes, random weights
    python -m benchmarks.roofline --model d24 --costs  # arithmetic, traffic and calls alone: nothing is run

The floor of a stage is the sum over its ops of the larger of arithmetic / ceiling and least traffic / ceiling, from the
ops' own cost models; its share of the measured time is what is reached. The ceilings are torch's large product in the
engine's dtype and a large copy. Time an op is taken in runs of their own, op by op, without graphs and waiting for the
device after each: what remains of a stage then is the host's. Writes
benchmarks/results/<machine>/roofline-<model>.json, of which `python -m benchmarks.tables` makes docs;
progress goes to stderr, the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from functools import partial
from typing import Any
from unittest import mock

import torch

from benchmarks.arithmetic import OpCost, op_costs, published_flops
from benchmarks.gpu_suite.engine_times import wall
from benchmarks.machine import describe, median_and_range, results_folder
from benchmarks.models import NAMES, open_model
from varsr_engine.config import ModelConfig
from varsr_engine.dispatch import Op
from varsr_engine.engine.engine import Engine
from varsr_engine.engine.params import EngineConfig

COPIED = {"cpu": 2**28, "cuda": 2**31}  # bytes: far beyond any cache


def copy_ceiling(device: torch.device, repeats: int = 5) -> float:
    """Bytes/s of a large copy, those read and those written; the best of several."""
    source = torch.ones(COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = min(wall(lambda: target.copy_(source), device) for _ in range(repeats + 1))
    return 2 * source.numel() / best


def lr_batch(config: ModelConfig, batch: int, device: torch.device) -> torch.Tensor:
    side = config.image_side
    return (torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(device)


def op_seconds(engine: Engine, lr: torch.Tensor) -> dict[tuple[str, str], float]:
    """Seconds in each op of each stage of one pass, the device waited for after each call."""
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    pending: dict[str, float] = defaultdict(float)
    run = Op.__call__

    def measured(op: Op, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = run(op, *args, **kwargs)
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
        pending[op.name] += time.perf_counter() - start
        return result

    def ended(stage: str) -> None:
        for op, value in pending.items():
            seconds[stage, op] += value
        pending.clear()

    with mock.patch.object(Op, "__call__", measured):
        engine.generate(lr, seed=0, on_stage=ended)
    return dict(seconds)


def stages_of(costs: list[OpCost]) -> list[str]:
    return list(dict.fromkeys(cost.stage for cost in costs))


def stage_rows(costs: list[OpCost], flop_per_s: float, bytes_per_s: float) -> dict[str, dict[str, Any]]:
    """By stage: arithmetic, least traffic, calls of ops, and the floor in seconds."""
    rows: dict[str, dict[str, Any]] = {}
    for stage in stages_of(costs):
        own = [cost for cost in costs if cost.stage == stage]
        rows[stage] = {
            "flops": sum(cost.cost.flops for cost in own),
            "bytes": sum(cost.cost.bytes for cost in own),
            "op_calls": sum(cost.calls for cost in own),
            "floor_s": sum(cost.floor(flop_per_s, bytes_per_s) for cost in own),
        }
    return rows


def latencies(engine: Engine, batches: list[int], repeat: int) -> dict[str, Any]:
    """Seconds of a batch, by its size, in turns."""
    inputs = {batch: lr_batch(engine.model_config, batch, engine.device) for batch in batches}
    runs: dict[int, list[float]] = {batch: [] for batch in batches}
    for lr in inputs.values():
        engine.generate(lr, seed=0)  # warm-up
    for turn in range(repeat):
        for batch, lr in inputs.items():
            runs[batch].append(wall(partial(engine.generate, lr, seed=0), engine.device))
        spent = ", ".join(f"batch {batch} {done[-1]:.3f} s" for batch, done in runs.items())
        print(f"round {turn + 1} of {repeat}: {spent}", file=sys.stderr, flush=True)
    return {str(batch): median_and_range(done) for batch, done in runs.items()}


def by_stage_and_op(engine: Engine, batch: int, repeat: int) -> dict[str, Any]:
    """Seconds of the stages, and in runs of their own of the ops; of an engine without graphs."""
    lr = lr_batch(engine.model_config, batch, engine.device)
    engine.generate(lr, seed=0)
    stages, ops = [], []
    for turn in range(repeat):
        stages.append(engine.generate(lr, seed=0).seconds)
        ops.append(op_seconds(engine, lr))
        print(f"by stage, round {turn + 1} of {repeat}", file=sys.stderr, flush=True)
    return {
        "stage_s": {stage: median_and_range([run[stage] for run in stages]) for stage in stages[0]},
        "op_s": [{"stage": s, "op": op, **median_and_range([run[s, op] for run in ops])} for s, op in ops[0]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="varsr-mini", help=NAMES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--costs", action="store_true", help="print arithmetic, traffic and calls, and run nothing")
    arguments = parser.parse_args()
    checkpoint, name = open_model(arguments.model, torch.device(arguments.device))
    config = checkpoint.config
    if arguments.costs:
        costs = op_costs(config)
        print(
            json.dumps({"model": name, "published_flops": published_flops(config), "stages": stage_rows(costs, 1, 1)})
        )
        return
    settings = EngineConfig(device=arguments.device, dtype=arguments.dtype)
    engine = Engine(checkpoint, settings)
    machine = describe(engine.device, engine.dtype)
    peak, traffic = machine["gemm_ceiling_gflops"] * 1e9, copy_ceiling(engine.device)
    costs = op_costs(config, arguments.batches[0], engine.dtype)
    latency = latencies(engine, arguments.batches, arguments.repeat)
    if settings.cuda_graphs and engine.device.type == "cuda":  # a graph has no ops to wait for
        del engine
        engine = Engine(checkpoint, settings.replace(cuda_graphs=False))
    result = {
        "benchmark": "roofline",
        "model": name,
        "machine": machine,
        "copy_ceiling_bytes_per_s": traffic,
        "batch": arguments.batches[0],
        "repeat": arguments.repeat,
        "published_flops": published_flops(config, arguments.batches[0]),
        "stages": stage_rows(costs, peak, traffic),
        "op_floor_s": [{"stage": c.stage, "op": c.op, "floor_s": c.floor(peak, traffic)} for c in costs],
        "latency_s": latency,
        **by_stage_and_op(engine, arguments.batches[0], arguments.repeat),
    }
    path = results_folder(machine) / f"roofline-{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
