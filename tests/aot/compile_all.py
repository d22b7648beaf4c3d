"""Compiles every Triton kernel that an image of the published model launches, for one architecture, without a GPU.

`python -m tests.aot.compile_all --arch 90` prints what each takes as JSON: registers, spills, shared memory and counts
of the instructions that matter. The committed table is kernels.json; `--write` renews it for both architectures.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("kernels.json")
ARCHES = (80, 89, 90)  # of 89 only what it has and 80 has not: the FP8 kernels
# Tensor core products of Hopper and of older GPUs (H: 16 bits, Q: FP8), TMA loads, asynchronous copies, 16-byte loads.
INSTRUCTIONS = {name: name for name in ("HGMMA", "HMMA", "QGMMA", "QMMA", "UTMALDG", "LDGSTS")}
INSTRUCTIONS |= {"LDG.128": r"LDG\.E\.128", "QGMMA from 0": r"QGMMA[^;]*\bRZ\b", "QMMA from 0": r"QMMA[^;]*\bRZ\b"}


def resources(cubin: bytes) -> dict[str, Any]:
    """Registers, spilled bytes and instruction counts of a compiled kernel, from the tools that Triton brings."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True).stdout
        sass = subprocess.run([tools / "nvdisasm", "-c", file.name], capture_output=True, text=True).stdout

    def number(name: str) -> int:
        return int(re.search(rf"{name}:(\d+)", usage)[1])  # type: ignore[index]

    counts = {name: len(re.findall(rf"\b{pattern}", sass)) for name, pattern in INSTRUCTIONS.items()}
    return {
        "registers": number("REG"),
        "spills": number("STACK") + number("LOCAL"),
        **{name: count for name, count in counts.items() if count},
    }


def describe(kernel: Any, constants: dict[str, Any], warps: int, stages: int) -> str:
    values = [f"{name}={value}" for name, value in sorted(constants.items())]
    return f"{kernel.fn.__name__}({', '.join(values)}) {warps} warps, {stages} stages"


def is_fp8(constants: dict[str, Any]) -> bool:
    """Whether these are the constants of a kernel that reads or writes FP8."""
    return "GROUP" in constants or bool(constants.get("QUANTIZED"))


def compile_all(arch: int, batches: tuple[int, ...] = (1, 8)) -> dict[str, dict[str, Any]]:
    """What every kernel of greedy, sampled and FP8 images takes, by the kernel's name and constants."""
    import torch
    from triton.runtime.jit import JITFunction

    from tests.aot.fake_gpu import fake_gpu
    from tests.aot.published import DEVICE, fake_pipeline, fake_request, run_image
    from varsr_engine.config import ModelConfig
    from varsr_engine.engine.params import EngineConfig

    run, found = JITFunction.run, {}

    def compile_one(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if arch == 89 and not is_fp8(kwargs):
            return
        compiled = run(kernel, *args, grid=(1,), warmup=True, **kwargs)
        constants = {k: v for k, v in kwargs.items() if k in {p.name for p in kernel.params if p.is_constexpr}}
        meta = compiled.metadata
        name = describe(kernel, constants, meta.num_warps, meta.num_stages)
        key = name, str(compiled.src.signature), compiled.hash
        if key not in found:
            found[key] = {**resources(compiled.asm["cubin"]), "shared": meta.shared}
            print(f"sm_{arch} {name}: {found[key]}", file=sys.stderr, flush=True)

    with fake_gpu(arch, compile_one) as gpu:
        config = ModelConfig.varsr_d24()
        everywhere = EngineConfig(quantization="fp8").fp8_switches(config)
        for fp8 in (None, everywhere) if arch >= 89 else (None,):
            pipeline = fake_pipeline(config, fp8=fp8)
            for batch in batches:
                for greedy in (True, False) if fp8 is None else (True,):  # what samples is the same
                    lr = torch.empty(batch, 3, 512, 512, device=DEVICE)
                    with gpu.recording():
                        run_image(pipeline, lr, fake_request(batch, greedy=greedy))
    table: dict[str, dict[str, Any]] = {}
    for (name, _, _), values in sorted(found.items()):
        worst = table.setdefault(name, values)  # the same constants with other alignments: the largest of each figure
        table[name] = {k: max(worst.get(k, 0), values.get(k, 0)) for k in sorted({*worst, *values})}
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHES))
    parser.add_argument("--write", action="store_true", help=f"into {TABLE.name}")
    args = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("compile_all: unset TRITON_INTERPRET, which makes kernels Python functions")
    import triton

    if len(args.arch) == 1:
        tables = {f"sm_{args.arch[0]}": compile_all(args.arch[0])}
    else:  # a process each: Triton keeps the first target that it meets
        command = [sys.executable, "-m", "tests.aot.compile_all", "--arch"]
        outputs = [subprocess.check_output([*command, str(arch)], text=True) for arch in args.arch]
        tables = {name: table for text in outputs for name, table in json.loads(text).items() if name != "triton"}
    text = json.dumps({"triton": triton.__version__, **tables}, indent=1)
    if args.write:
        TABLE.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
