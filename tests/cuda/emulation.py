"""The CUDA kernels on a CPU: the sources of csrc/cuda/, bindings included, compiled by a C++ compiler.

tests/cuda/host/ has headers in the place of CUDA's, and an emulator that runs a block's threads as fibers. The module
is built once for each state of the sources, into build/, and imported beside the real one.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

import torch

from varsr_engine.kernels import cuda_backend

ROOT = Path(__file__).parents[2]
HOST, CUDA, BUILT = Path(__file__).parent / "host", ROOT / "csrc" / "cuda", ROOT / "build" / "cuda_emulation"
ORDERS = (0, 1, 2)  # in which threads and blocks take their turns: forwards, backwards, in disorder
NO_DRIVER = 35  # cudaErrorInsufficientDriver
# longjmp between stacks is how fibers switch, which the fortified one takes for an error.
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE")


def why_not() -> str | None:
    """Why the kernels cannot be emulated here, or None."""
    if compiler() is None:
        return "there is no C++ compiler"
    if sys.platform != "linux":
        return "fibers are written for Linux"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "there are no headers of Python"
    return None


def compiler() -> str | None:
    return os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".cu", ".cuh", ".cpp", ".h"))


def _run(command: list[str | None]) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def _build(target: Path, sources: list[Path]) -> None:
    import pybind11

    includes = [f"-I{path}" for path in (HOST, CUDA, pybind11.get_include(), sysconfig.get_paths()["include"])]

    def compile_one(source: Path) -> str:
        out = target.parent / f"{target.stem}-{source.stem}.o"
        flags = [*FLAGS, "-O1"] if source.suffix == ".cpp" else FLAGS
        _run([compiler(), "-x", "c++", *flags, *includes, "-c", str(source), "-o", str(out)])
        return str(out)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compile_one, sources))
    unfinished = target.with_suffix(".unfinished")
    _run([compiler(), "-shared", *objects, "-o", str(unfinished)])
    unfinished.rename(target)
    for path in objects:
        Path(path).unlink()


def library(name: str, sources: list[Path]) -> Path:
    """The shared library of these sources, built where it is not there yet."""
    contents = b"\0".join(path.read_bytes() for path in (*_files(CUDA), *_files(HOST), Path(__file__)))
    target = BUILT / f"{name}-{hashlib.sha256(contents).hexdigest()[:16]}.so"
    BUILT.mkdir(parents=True, exist_ok=True)
    with open(BUILT / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the tests may want the same
        if not target.exists():
            for old in BUILT.glob(f"{name}-*"):
                old.unlink()
            _build(target, sources)
    return target


@functools.cache
def emulated() -> ModuleType:
    """The bindings, on the emulator."""
    target = library("_C", [*sorted(CUDA.glob("*.cu")), CUDA / "bindings.cpp", HOST / "emulator.cpp"])
    spec = importlib.util.spec_from_loader("_C", ExtensionFileLoader("_C", str(target)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def _controls() -> ctypes.CDLL:
    return ctypes.CDLL(emulated().__file__)


@contextmanager
def on_cpu(order: int = 0) -> Iterator[None]:
    """Within this context CUDA kernels take tensors on a CPU; their threads run in this order."""
    _controls().emulator_order(order)
    try:
        with cuda_backend.emulating(emulated()):
            yield
    finally:
        _controls().emulator_order(0)


@contextmanager
def failing(error: int) -> Iterator[None]:
    """Within this context the emulated runtime answers every call with this error."""
    _controls().emulator_fail_with(error)
    try:
        yield
    finally:
        _controls().emulator_fail_with(0)


def same_bits(a: object, b: object) -> bool:
    """Whether two results, tensors or tuples of them, are equal bit by bit, NaN included."""
    if isinstance(a, torch.Tensor):
        if not isinstance(b, torch.Tensor) or a.dtype != b.dtype or a.shape != b.shape:
            return False
        return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same_bits, a, b))
    return a == b
