"""Lists the packages (kernels/ is installed as varsr_engine.kernels) and builds the CPU kernels.

csrc/cpu/*.cpp becomes varsr_engine/_cpu_avx2.so and _cpu_avx512.so, of which `kernels/cpu_library.py` loads the one
that the processor runs: plain C functions, no Python headers, no torch. They are left out where there is no C++
compiler or no x86-64; VARSR_BUILD_CPU=1 makes that an error, VARSR_BUILD_CPU=0 leaves them out always.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


class BuildCpuKernels(build_ext):
    """Compiles each source by itself, in parallel, and links them into a shared library."""

    def get_ext_filename(self, name: str) -> str:
        return name.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
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
    """A wheel with kernels is of its platform, but of any Python 3: the library knows nothing of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform_tag = super().get_tag()
        return ("py3", "none", platform_tag) if self.distribution.has_ext_modules() else (python, abi, platform_tag)


def cpu_kernels() -> list[Extension]:
    wanted = os.environ.get("VARSR_BUILD_CPU", "auto")
    if wanted not in ("0", "1", "auto"):
        sys.exit(f"VARSR_BUILD_CPU must be 0, 1 or auto, got {wanted!r}")
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


setup(
    packages=[
        "varsr_engine",
        *(f"varsr_engine.{name}" for name in find_packages("varsr_engine")),
        "varsr_engine.kernels",
        *(f"varsr_engine.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"varsr_engine": "varsr_engine", "varsr_engine.kernels": "kernels"},
    package_data={"varsr_engine": ["py.typed", "assets/*", "training/configs/*.toml"]},
    ext_modules=cpu_kernels(),
    cmdclass={"build_ext": BuildCpuKernels, "bdist_wheel": PlatformWheel},
)
