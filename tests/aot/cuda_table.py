"""What ptxas and the machine code say of every CUDA kernel, without a GPU: registers, spills, 16-byte loads.

`python -m tests.aot.cuda_table` compiles csrc/cuda/ with nvcc and prints it as JSON; `--write` renews the committed
table, cuda_kernels.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("cuda_kernels.json")
OBJECTS = ROOT / "build" / "cuda"  # those of the installation
# Tensor core products of Hopper and of older GPUs, TMA loads, 16-byte loads and stores, and what a spill would be.
INSTRUCTIONS = {
    "HGMMA": r"\bHGMMA",
    "QGMMA": r"\bQGMMA",
    "HMMA": r"\bHMMA",
    "UTMALDG": r"\bUTMALDG",
    "LDG.128": r"\bLDG\.E\.128",
    "STG.128": r"\bSTG\.E\.(\w+\.)*128",
    "LDL/STL": r"\b(LDL|STL)\b",
}
# Not TMA: a product's weights are no earlier kernel's output, and are loaded ahead of the wait.
WAIT, LOAD = r"\bACQBULK\b", r"\b(LDG|STG|LD|ST|ATOM|ATOMG|RED)\."


def build_cuda() -> ModuleType:
    """csrc/build_cuda.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("build_cuda", ROOT / "csrc" / "build_cuda.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def instructions(object_file: Path, arch: str, builder: ModuleType) -> dict[str, list[str]]:
    """The machine code of each kernel, a line an instruction, from the tool that Triton brings."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [str(tool), "-sass", "-arch", arch, str(object_file)]
    sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^\s*Function : (\w+)$", sass, flags=re.MULTILINE)[1:]
    names = builder.demangled(parts[::2]) if parts else []
    lines = [re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", body) for body in parts[1::2]]
    return dict(zip(names, lines, strict=True))


def first(lines: list[str], pattern: str) -> int:
    return next((i for i, line in enumerate(lines) if re.search(pattern, line)), len(lines))


def report(nvcc: str) -> dict[str, dict[str, dict[str, Any]]]:
    """By architecture and kernel: ptxas's numbers and counts of the instructions that matter.

    On Hopper also whether each kernel waits for the one ahead of it before it touches memory.
    """
    builder = build_cuda()
    table: dict[str, dict[str, dict[str, Any]]] = builder.ptxas_report(nvcc, OBJECTS)
    for arch, kernels in table.items():
        for source in sorted(builder.FOLDER.glob("*.cu")):
            for name, lines in instructions(builder.compile_object(nvcc, source, OBJECTS), arch, builder).items():
                counts = {key: sum(bool(re.search(p, line)) for line in lines) for key, p in INSTRUCTIONS.items()}
                kernels[name] |= {key: count for key, count in counts.items() if count}
                if arch != "sm_80":
                    kernels[name]["waits first"] = first(lines, WAIT) < first(lines, LOAD)
    return {arch: dict(sorted(kernels.items())) for arch, kernels in table.items()}


def nvcc_version(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V([\d.]+)", text)[1]  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help=f"into {TABLE.name}")
    args = parser.parse_args()
    nvcc = build_cuda().find_nvcc()
    if nvcc is None:
        sys.exit("cuda_table: there is no nvcc")
    table = {"nvcc": nvcc_version(nvcc), **report(nvcc)}
    rows = ",\n".join(
        f' "{arch}": {{\n' + ",\n".join(f"  {json.dumps(n)}: {json.dumps(v)}" for n, v in kernels.items()) + "\n }"
        for arch, kernels in table.items()
        if isinstance(kernels, dict)
    )
    text = f'{{\n "nvcc": "{table["nvcc"]}",\n{rows}\n}}\n'
    if args.write:
        TABLE.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
