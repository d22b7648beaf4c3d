"""Builds varsr_engine._C from csrc/cuda/ with nvcc: no torch, no GPU, no driver. Standard library only.

`setup.py` calls `build`, and `tests/aot` reads what ptxas says of each kernel through `ptxas_report`. An object is
compiled again only where its source, a header, nvcc or a flag has changed: its name is a hash of all of them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "cuda"
# sm_90a, not sm_90: wgmma needs it. Neither has PTX: a device of another generation gets a reason, not a slow start.
ARCHITECTURES = ("80", "90a")
FLAGS = ("-std=c++17", "-O3", "-lineinfo", "-Xcompiler=-fPIC,-fvisibility=hidden", f"-I{FOLDER / 'device'}")
# ptxas says that it ignored setmaxnreg, or that it runs wgmma one after the other.
WARNINGS_THAT_FAIL = ("C7508", "C7510", "C7513")


class CannotBuild(Exception):
    """Why there is no CUDA extension here."""


def find_nvcc() -> str | None:
    """nvcc of VARSR_NVCC, CUDA_HOME or the PATH."""
    home = os.environ.get("CUDA_HOME")
    named = os.environ.get("VARSR_NVCC") or shutil.which("nvcc") or (home and shutil.which("nvcc", path=f"{home}/bin"))
    return named or None


def why_not(nvcc: str | None) -> str | None:
    """What is missing for a build, or None."""
    if nvcc is None:
        return "there is no nvcc (set VARSR_NVCC or CUDA_HOME, or put it on the PATH)"
    try:
        import pybind11  # noqa: F401
    except ImportError:
        return "pybind11 is not installed"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return f"Python's headers are not in {sysconfig.get_paths()['include']}"
    return None


def architectures() -> tuple[str, ...]:
    """VARSR_CUDA_ARCHS, as in "90a", or all."""
    return tuple(os.environ.get("VARSR_CUDA_ARCHS", "").replace(",", " ").split()) or ARCHITECTURES


def sources() -> list[Path]:
    return sorted([*FOLDER.glob("*.cu"), *FOLDER.glob("*.cpp")])


def headers() -> list[Path]:
    return sorted([*FOLDER.rglob("*.cuh"), *FOLDER.rglob("*.h")])


def _flags_of(source: Path) -> list[str]:
    if source.stem.endswith("_sm90"):  # Hopper's own instructions
        return ["-gencode=arch=compute_90a,code=sm_90a", "-Xptxas=-v"]
    if source.suffix == ".cu":
        return [*(f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures()), "-Xptxas=-v"]
    built = " ".join(f"sm_{a}" for a in architectures())
    return [f'-DVARSR_CUDA_ARCHITECTURES="{built}"']


def _includes_of(source: Path) -> tuple[list[str], str]:
    """Of the bindings: where Python's and pybind11's headers are, which pip changes from build to build, and which."""
    if source.suffix == ".cu":
        return [], ""
    import pybind11

    folders = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    return folders, f"pybind11 {pybind11.__version__}, Python {sys.version}"


def _run(command: list[str], purpose: str) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise CannotBuild(f"{purpose}: {error}") from error
    if done.returncode != 0:
        raise CannotBuild(f"{purpose}: {command[0]} failed\n{done.stderr[-4000:]}")
    return done


def compile_object(nvcc: str, source: Path, folder: Path) -> Path:
    """The object of a source, from `folder` if it is there; what ptxas said lies beside it as .log."""
    command = [nvcc, *FLAGS, *_flags_of(source), "-c", str(source)]
    version = _run([nvcc, "--version"], "nvcc's version").stdout
    includes, whose = _includes_of(source)
    contents = (path.read_bytes() for path in (source, *headers()))
    key = hashlib.sha256(b"\0".join(["\0".join([*command, version, whose]).encode(), *contents])).hexdigest()[:16]
    target = folder / f"{source.stem}-{key}.o"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{source.stem}-*"):
        old.unlink()
    unfinished = target.with_suffix(".part.o")
    done = _run([*command, *includes, "-o", str(unfinished)], source.name)
    for warning in WARNINGS_THAT_FAIL:
        if warning in done.stderr:
            raise CannotBuild(f"{source.name}: ptxas warning {warning}:\n{done.stderr[-4000:]}")
    target.with_suffix(".log").write_text(done.stderr)
    unfinished.rename(target)
    return target


def build(nvcc: str, output: Path, folder: Path, jobs: int | None = None) -> None:
    """Link `output` from objects in `folder`, as many at a time as there are processors (or `jobs`)."""
    with ThreadPoolExecutor(jobs or int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        objects = list(pool.map(lambda source: compile_object(nvcc, source, folder), sources()))
    output.parent.mkdir(parents=True, exist_ok=True)
    link = [nvcc, "-shared", "-cudart=static", *map(str, objects), "-o", str(output)]
    _run(link, output.name)


# --- what ptxas says -------------------------------------------------------------------------------------------------

_ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def demangled(symbols: list[str]) -> list[str]:
    """`adaln_kernel<float, __half, 1>` for each mangled name, without namespaces and arguments."""
    done = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    lines = (
        re.sub(r"\(anonymous namespace\)::|\(int\)|\(bool\)|varsr::", "", line) for line in done.stdout.splitlines()
    )
    return [line.removeprefix("void ").partition("(")[0] for line in lines]


def ptxas_report(nvcc: str, folder: Path) -> dict[str, dict[str, dict[str, int]]]:
    """By architecture and kernel: registers, static shared memory, and bytes of stack and spills."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        compiled = pool.map(lambda source: compile_object(nvcc, source, folder), FOLDER.glob("*.cu"))
        logs = [path.with_suffix(".log").read_text() for path in compiled]
    report: dict[str, dict[str, dict[str, int]]] = {}
    for text in logs:
        found = list(_ENTRY.finditer(text))
        names = demangled([match[1] for match in found])
        ends = [*(match.start() for match in found[1:]), len(text)]
        for match, name, end in zip(found, names, ends, strict=True):
            part = text[match.start() : end]
            spills, used, shared = _SPILLS.search(part), _USED.search(part), _SHARED.search(part)
            assert spills and used, part
            report.setdefault(f"sm_{match[2]}", {})[name] = {
                "registers": int(used[1]),
                "shared": int(shared[1]) if shared else 0,
                "spills": sum(map(int, spills.groups())),
            }
    return report
