"""csrc/build_cuda.py and setup.py's choice, with an nvcc that is a shell script: no CUDA is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.aot.cuda_table import ROOT, build_cuda

FAKE = """#!/bin/sh
if [ "$1" = --version ]; then echo "release 13.0, V{version}"; exit 0; fi
echo "$@" >> {folder}/calls
cat {folder}/says >&2
for word in "$@"; do [ "$last" = -o ] && echo object > "$word"; last=$word; done
exit {status}
"""
SAYS = """\
ptxas info    : Compiling entry function '_ZN5varsr4rowsIfLi4EEEvv' for 'sm_90a'
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 256 bytes smem
ptxas info    : Compiling entry function '_ZN5varsr4rowsIfLi1EEEvv' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers
"""


class FakeNvcc:
    """An nvcc that writes down how it is called, and what it prints and answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = str(folder / "nvcc")
        self.becomes()

    def becomes(self, says: str = "", status: int = 0, version: str = "13.0.88") -> None:
        (self.folder / "says").write_text(says)
        Path(self.path).write_text(FAKE.format(folder=self.folder, status=status, version=version))
        Path(self.path).chmod(0o755)

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def nvcc(tmp_path: Path) -> FakeNvcc:
    return FakeNvcc(tmp_path)


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The build's module, of two kernels and a header that lie in a folder of the test's."""
    module = build_cuda()
    (tmp_path / "cuda").mkdir()
    for name in ("a.cu", "b.cu", "shared.cuh"):
        (tmp_path / "cuda" / name).write_text(f"// {name}\n")
    monkeypatch.setattr(module, "FOLDER", tmp_path / "cuda")
    monkeypatch.delenv("VARSR_CUDA_ARCHS", raising=False)
    return module


def test_only_what_has_changed_is_compiled(builder: ModuleType, nvcc: FakeNvcc, tmp_path: Path) -> None:
    def compiled() -> list[str]:
        """The sources that a build compiles, before it links."""
        before = len(nvcc.calls)
        builder.build(nvcc.path, tmp_path / "out" / "_C.so", tmp_path / "objects", jobs=1)
        assert (tmp_path / "out" / "_C.so").exists()
        *sources, link = nvcc.calls[before:]
        assert "-shared -cudart=static" in link and "-lcuda" not in link
        return [Path(call.split()[-3]).name for call in sources]

    assert compiled() == ["a.cu", "b.cu"]
    assert compiled() == []
    (tmp_path / "cuda" / "b.cu").write_text("// changed\n")
    assert compiled() == ["b.cu"]
    (tmp_path / "cuda" / "shared.cuh").write_text("// changed\n")
    assert compiled() == ["a.cu", "b.cu"]
    nvcc.becomes(version="13.1.2")
    assert compiled() == ["a.cu", "b.cu"]
    assert len(list((tmp_path / "objects").glob("*.o"))) == 2  # what is out of date goes


def test_both_architectures_unless_told(builder: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert builder.architectures() == ("80", "90a")
    flags = " ".join(builder._flags_of(Path("a.cu")))
    assert "arch=compute_80,code=sm_80" in flags and "arch=compute_90a,code=sm_90a" in flags
    monkeypatch.setenv("VARSR_CUDA_ARCHS", "90a")
    assert builder.architectures() == ("90a",)


@pytest.mark.parametrize(
    ("says", "status", "reason"),
    [
        ("error: expected a ;", 1, "expected a ;"),
        ("ptxas warning : C7508: Potential Performance Loss: 'setmaxnreg' ignored", 0, "a.cu: ptxas warning C7508"),
    ],
)
def test_what_fails(builder: ModuleType, nvcc: FakeNvcc, tmp_path: Path, says: str, status: int, reason: str) -> None:
    nvcc.becomes(says, status)
    for _ in range(2):  # nothing is kept that would pass the second time
        with pytest.raises(builder.CannotBuild, match=reason):
            builder.compile_object(nvcc.path, tmp_path / "cuda" / "a.cu", tmp_path / "objects")
    with pytest.raises(builder.CannotBuild, match="No such file"):
        builder.compile_object(str(tmp_path / "none"), tmp_path / "cuda" / "a.cu", tmp_path / "objects")


def test_report(builder: ModuleType, nvcc: FakeNvcc, tmp_path: Path) -> None:
    nvcc.becomes(SAYS)
    (tmp_path / "cuda" / "b.cu").unlink()
    assert builder.ptxas_report(nvcc.path, tmp_path / "objects") == {
        "sm_80": {"rows<float, 1>": {"registers": 32, "shared": 0, "spills": 0}},
        "sm_90a": {"rows<float, 4>": {"registers": 40, "shared": 256, "spills": 16}},
    }


def test_where_nvcc_is(builder: ModuleType, nvcc: FakeNvcc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("VARSR_NVCC", "CUDA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert builder.find_nvcc() is None
    assert "there is no nvcc" in builder.why_not(None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert builder.find_nvcc() == nvcc.path
    monkeypatch.setenv("VARSR_NVCC", "/else/where/nvcc")
    assert builder.find_nvcc() == "/else/where/nvcc"


# --- setup.py --------------------------------------------------------------------------------------------------------


def run_setup(**environment: str) -> subprocess.CompletedProcess[str]:
    env: dict[str, Any] = {**os.environ, "VARSR_BUILD_CPU": "0", **environment}
    command = [sys.executable, "setup.py", "--version"]
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_wish_that_is_none() -> None:
    done = run_setup(VARSR_BUILD_CUDA="yes")
    assert done.returncode != 0 and "VARSR_BUILD_CUDA must be 0, 1 or auto, got 'yes'" in done.stderr


def test_without_nvcc(tmp_path: Path) -> None:
    """Asked for, that is an error; otherwise the package goes without."""
    bare = {"PATH": str(tmp_path), "VARSR_NVCC": "", "CUDA_HOME": ""}
    done = run_setup(VARSR_BUILD_CUDA="1", **bare)
    assert done.returncode != 0 and "VARSR_BUILD_CUDA=1, but there is no nvcc" in done.stderr
    assert run_setup(VARSR_BUILD_CUDA="auto", **bare).returncode == 0
