"""What a GPU has to show, in one call of eight minutes: is it right, how fast, against what, in how much memory.

    python -m benchmarks.gpu_suite --out results                # all parts, on the GPU that torch sees
    python -m benchmarks.gpu_suite --only checks,ops --minutes 4 --out results
    python -m benchmarks.gpu_suite --dry-run --out out          # on a CPU, tiny shapes: proves the plumbing, no numbers

Parts, in the order in which they run (`session.PARTS`): machine (ceilings), compile (Triton kernels, in parallel, into
Triton's cache on disk), checks, parity, engine, baselines, ops, profile. Each runs in processes of its own: a kernel
that takes its CUDA context down, a hang or an overrun costs its own item, is named in the JSON, and the others go on.
Results are written after each part, and every few seconds within one. The exit status is 1 if anything failed.

Needs no installation: a checkout with torch, Triton and the packages of pyproject.toml will do.
`VARSR_GOLDEN_DIRS` adds golden cases to `parity`, the published size among them.

By hand, on a machine where the tools can see the hardware (never change clocks or power settings):

    compute-sanitizer --tool memcheck python -m benchmarks.gpu_suite.worker --part checks --match 'mlp scale.9'
    ncu --clock-control none --set full -k regex:scale_attention -c 4 \\
        python -m benchmarks.gpu_suite.worker --part checks --match 'scale_attention scale.9'
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import varsr_engine

if importlib.util.find_spec("varsr_engine.kernels") is None:  # a checkout that is not installed: setup.py maps kernels/
    varsr_engine.__path__.append(str(Path(__file__).resolve().parents[2]))
