"""Checks what was built: the files of the wheel and the sdist, the metadata, and that an installed wheel imports.

Usage: python .ci/check_dist.py dist, or dist/cuda, where there is no sdist
"""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = {"torch", "triton", "numpy", "einops", "safetensors", "pillow", "typer", "rich"}
# What a wheel may hold beside modules; the rest of the tree (tests, benchmarks, ...) stays out.
DATA = {
    "varsr_engine/py.typed",
    "varsr_engine/assets/varsr-mini.safetensors",
    "varsr_engine/training/configs/mini-autoencoder.toml",
    "varsr_engine/training/configs/mini-transformer.toml",
    "varsr_engine/integrations/comfyui/pyproject.toml",
    "varsr_engine/integrations/comfyui/requirements.txt",
    *(f"varsr_engine/evaluation/page/page.{kind}" for kind in ("css", "html", "js")),
    *(f"varsr_engine/serving/static/{path.name}" for path in (ROOT / "varsr_engine/serving/static").iterdir()),
}
CPU_KERNELS = {f"varsr_engine/_cpu_{name}.so" for name in ("avx2", "avx512")}
SOURCES = (".cpp", ".h", ".cu", ".cuh", ".py")
CUDA_KERNELS = f"varsr_engine/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
SDIST = {"setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "CHANGELOG.md", "csrc/README.md"}

# Runs outside the checkout, with the wheel alone first on the path.
IMPORTS = """
import importlib, pathlib, sys
target = pathlib.Path(sys.argv[1]).resolve()
import varsr_engine
assert "torch" not in sys.modules, "import varsr_engine imports torch"
for name in sys.argv[2:]:
    file = pathlib.Path(importlib.import_module(name).__file__).resolve()
    assert target in file.parents, f"{name} came from {file}, not from the wheel"
"""


def modules_in_checkout() -> dict[str, str]:
    """Each module's path in a wheel, and its path in the checkout."""
    found = {}
    for folder, installed in (("varsr_engine", "varsr_engine"), ("kernels", "varsr_engine/kernels")):
        for path in (ROOT / folder).rglob("*.py"):
            found[f"{installed}/{path.relative_to(ROOT / folder).as_posix()}"] = path.relative_to(ROOT).as_posix()
    return found


def assets_in_checkout() -> set[str]:
    """The packaged model, and whatever else lies beside it."""
    return {p.relative_to(ROOT).as_posix() for p in (ROOT / "varsr_engine" / "assets").glob("*") if p.is_file()}


def compare(what: str, missing: set[str], unexpected: set[str]) -> None:
    lines = [
        *(f"  missing: {name}" for name in sorted(missing)),
        *(f"  unexpected: {name}" for name in sorted(unexpected)),
    ]
    if lines:
        sys.exit("\n".join([f"{what}:", *lines]))


def has_cuda(wheel: Path) -> bool:
    """Whether CUDA kernels should be in it: they are of one Python, which the name then says."""
    return "-py3-" not in wheel.name


def check_wheel(path: Path) -> None:
    with zipfile.ZipFile(path) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
        [info] = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
        entry_points = wheel.read(f"{info}/entry_points.txt").decode()
    files = {name for name in names if not name.startswith(f"{info}/")}
    expected = {*modules_in_checkout(), *assets_in_checkout(), *DATA}
    if "-none-any" not in path.name:  # a platform's wheel: built where there is a C++ compiler
        expected |= CPU_KERNELS
    if has_cuda(path):
        expected.add(CUDA_KERNELS)
    compare(path.name, expected - files, files - expected)
    compare(path.name, {f"{info}/licenses/LICENSE"} - names, set())

    requirements = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    core = {re.split(r"[^A-Za-z0-9._-]", line)[0].lower().replace("_", "-") for line in requirements}
    compare(f"{path.name}: core dependencies", CORE - core, core - CORE)
    for line in metadata.get_all("Requires-Dist", []):
        if line.lower().startswith("torchvision"):
            sys.exit(f"{path.name}: depends on torchvision")
    if metadata["License-Expression"] != "Apache-2.0" or "varsr = varsr_engine.cli:main" not in entry_points:
        sys.exit(f"{path.name}: wrong licence or no `varsr` command in its metadata")
    print(f"{path.name}: {len(files)} files, depends on {', '.join(sorted(core))}")


def check_sdist(path: Path) -> None:
    with tarfile.open(path) as archive:
        names = {member.name.split("/", 1)[1] for member in archive if member.isfile()}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*") if p.suffix in SOURCES}
    expected = {*SDIST, *DATA, *sources, *assets_in_checkout(), *modules_in_checkout().values()}
    unexpected = {name for name in names if name.split("/")[0] in ("tests", "benchmarks", "examples", "docs")}
    compare(path.name, expected - names, unexpected)
    print(f"{path.name}: {len(names)} files")


def check_imports(wheel: Path) -> None:
    """Install the wheel in an empty folder and import every package of it from there."""
    packages = [
        name.removesuffix("/__init__.py").replace("/", ".")
        for name in modules_in_checkout()
        if name.endswith("/__init__.py")
    ]
    if has_cuda(wheel):
        packages.append("varsr_engine._C")
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--target", folder, str(wheel)], check=True)
        command = [sys.executable, "-c", IMPORTS, folder, *sorted(packages)]
        subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": folder}, check=True)
    print(f"{wheel.name}: {len(packages)} modules import from an installed copy")


def main() -> None:
    dist = Path(sys.argv[1])
    [wheel] = dist.glob("*.whl")
    check_wheel(wheel)
    for sdist in dist.glob("*.tar.gz"):
        check_sdist(sdist)
    check_imports(wheel)


if __name__ == "__main__":
    main()
