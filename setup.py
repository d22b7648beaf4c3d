"""Lists the packages (kernels/ is installed as varsr_engine.kernels) and builds the CPU and the CUDA kernels.

csrc/cpu/*.cpp becomes varsr_engine/_cpu_avx2.so and _cpu_avx512.so, of which `kernels/cpu_library.py` loads the one
that the processor runs: plain C functions, no Python headers, no torch. They are left out where there is no C++
compiler or no x86-64; VARSR_BUILD_CPU=1 makes that an error, VARSR_BUILD_CPU=0 leaves them out always.

csrc/cuda/ becomes varsr_engine/_C, a Python module, where nvcc is found (csrc/build_cuda.py). If that fails the package
is installed without it, with a warning: VARSR_BUILD_CUDA=1 makes it an error, VARSR_BUILD_CUDA=0 does not try.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
# -fopenmp is for the compiler only: at run time the symbols are those of torch's own thread pool.
COMPILE = ["-std=c++17", "-O3", "-fopenmp", "-fPIC", "-fvisibility=default", "-Wall", "-Wextra"]
# A library each. GCC 12 takes its own AVX-512 headers for uninitialised reads (its bug 105593).
INSTRUCTIONS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx2", "-mfma", *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")), "-Wno-uninitialized"],
}
CUDA = "varsr_engine._C"
CUDA_OBJECTS = ROOT / "build" / "cuda"  # kept from build to build


def load_build_cuda() -> ModuleType:
    """csrc/build_cuda.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("build_cuda", ROOT / "csrc" / "build_cuda.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build_cuda = load_build_cuda()
NVCC = build_cuda.find_nvcc()


class BuildKernels(build_ext):
    """Compiles each source by itself, in parallel, and links them into a shared library."""

    def get_ext_filename(self, name: str) -> str:
        if name.rpartition(".")[2] == CUDA.rpartition(".")[2]:  # a module of this Python
            return str(super().get_ext_filename(name))
        return name.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        if ext.name == CUDA:
            self.build_cuda_kernels(ext)
        else:
            self.build_cpu_kernels(ext)

    def build_cuda_kernels(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            if (reason := build_cuda.why_not(NVCC)) is not None:
                raise build_cuda.CannotBuild(reason)
            build_cuda.build(NVCC, target, CUDA_OBJECTS)
        except build_cuda.CannotBuild as error:
            if not ext.optional:
                sys.exit(f"VARSR_BUILD_CUDA=1, but the CUDA kernels cannot be built: {error}")
            # What an earlier build left would not fit the Python files any more.
            for stale in (target, ROOT / self.get_ext_filename(ext.name)):
                stale.unlink(missing_ok=True)
            print(f"WARNING: varsr_engine is installed without its CUDA kernels: {error}", file=sys.stderr)

    def build_cpu_kernels(self, ext: Extension) -> None:
        target, objects = Path(self.get_ext_fullpath(ext.name)), Path(self.build_temp) / ext.name
        target.parent.mkdir(parents=True, exist_ok=True)
        objects.mkdir(parents=True, exist_ok=True)

        def compile_one(source: str) -> str:
            out = str(objects / (Path(source).stem + ".o"))
            subprocess.run([str(COMPILER), *COMPILE, *ext.extra_compile_args, "-c", source, "-o", out], check=True)
            return out

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            linked = list(pool.map(compile_one, ext.sources))
        subprocess.run([str(COMPILER), "-shared", *linked, "-o", str(target)], check=True)


class PlatformWheel(bdist_wheel):
    """A wheel with CPU kernels is of its platform, but of any Python 3; one with CUDA kernels is of this Python."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform_tag = super().get_tag()
        names = [ext.name for ext in self.distribution.ext_modules or []]
        return ("py3", "none", platform_tag) if names and CUDA not in names else (python, abi, platform_tag)


def wish(variable: str) -> str:
    wanted = os.environ.get(variable, "auto")
    if wanted not in ("0", "1", "auto"):
        sys.exit(f"{variable} must be 0, 1 or auto, got {wanted!r}")
    return wanted


def cuda_kernels() -> list[Extension]:
    wanted = wish("VARSR_BUILD_CUDA")
    if wanted == "0" or (wanted == "auto" and (NVCC is None or sys.platform != "linux")):
        return []
    if NVCC is None:
        sys.exit(f"VARSR_BUILD_CUDA=1, but {build_cuda.why_not(None)}")
    sources = [str(path.relative_to(ROOT)) for path in build_cuda.sources()]
    headers = [str(path.relative_to(ROOT)) for path in build_cuda.headers()]
    return [Extension(CUDA, sources, depends=headers, optional=wanted == "auto")]


def cpu_kernels() -> list[Extension]:
    wanted = wish("VARSR_BUILD_CPU")
    able = COMPILER is not None and platform.machine() in ("x86_64", "AMD64") and sys.platform == "linux"
    if wanted == "0" or (wanted == "auto" and not able):
        return []
    if not able:
        sys.exit("VARSR_BUILD_CPU=1, but the CPU kernels need a C++ compiler (set CXX) on 64-bit x86 Linux")
    sources = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cpu/*.cpp"))
    headers = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("csrc/cpu/*.h"))
    return [
        Extension(
            f"varsr_engine._cpu_{name}",
            sources,
            depends=headers,
            extra_compile_args=flags,
            optional=wanted == "auto",
        )
        for name, flags in INSTRUCTIONS.items()
    ]


CUDA_KERNELS = cuda_kernels()

setup(
    packages=[
        "varsr_engine",
        *(f"varsr_engine.{name}" for name in find_packages("varsr_engine")),
        "varsr_engine.kernels",
        *(f"varsr_engine.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"varsr_engine": "varsr_engine", "varsr_engine.kernels": "kernels"},
    package_data={
        "varsr_engine": [
            "py.typed",
            "assets/*",
            "training/configs/*.toml",
            "serving/static/*",
            "evaluation/page/page.*",
            "integrations/comfyui/*.toml",
            "integrations/comfyui/*.txt",
        ]
    },
    ext_modules=[*cpu_kernels(), *CUDA_KERNELS],
    setup_requires=["pybind11>=2.13"] if CUDA_KERNELS else [],  # what pip installs to build with
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
