"""Hosts and engines for the integrations. A host that is not installed is stood for by a stub of its interface."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.engine.test_previews import engine_with_map
from varsr_engine.engine.engine import Engine

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def micro() -> Iterator[Engine]:
    """A tiny engine with a thread: tiles of 8 x 8 pixels become 32 x 32. Batches change nothing."""
    engine = engine_with_map(threaded=True, batch_size=None, numerics="batch_invariant")
    yield engine
    engine.close()


@pytest.fixture
def stub_modules(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """stub_modules("a.b", name=value): importable until the test ends, with the packages above it."""

    def add(name: str, **contents: Any) -> ModuleType:
        above, _, last = name.rpartition(".")
        module = ModuleType(name)
        module.__path__ = []
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)
        if above:
            parent = sys.modules.get(above) or add(above)
            monkeypatch.setattr(parent, last, module, raising=False)
        return module

    return add


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """example("folder/module.py") of examples/, imported by its path until the test ends."""

    def load(path: str) -> Any:
        file = EXAMPLES / path
        name = f"example_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def lend(micro: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The shared engine, which every Engine.from_pretrained gives until the test ends; a close leaves it open."""
    for name in ("close", "drain", "warmup"):
        monkeypatch.setattr(micro, name, lambda *args: None)
    monkeypatch.setattr(Engine, "from_pretrained", lambda *args, **settings: micro)
    return micro
