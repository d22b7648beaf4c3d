"""docs/serving.md names every route, error and setting, as they are."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from tests.serving.conftest import Running
from varsr_engine.errors import ModelLoadError, VarsrError
from varsr_engine.serving import errors as serving_errors
from varsr_engine.serving.settings import ServerSettings

TEXT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
NEVER_ANSWERED = {"cancelled", "output_error", "kernel_unavailable"}  # nobody hears the first; the others come earlier


def test_routes(server: Running) -> None:
    paths: dict[str, Any] = server.client.get("/openapi.json").json()["paths"]
    actual = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert set(re.findall(r"^\| `([A-Z]+) (/[^`]*)` \|", TEXT, re.MULTILINE)) == actual


def test_errors() -> None:
    assert serving_errors.BusyError.code  # the module's own kinds are below VarsrError too

    def below(cls: type[VarsrError]) -> set[type[VarsrError]]:
        return {cls}.union(*(below(c) for c in cls.__subclasses__()))

    kinds = [c for c in below(VarsrError) if c.__module__.startswith("varsr_engine.") and "code" in vars(c)]
    actual = {(c.code, c.http_status) for c in kinds if not issubclass(c, ModelLoadError)}
    documented = {(code, int(status)) for code, status in re.findall(r"^\| `(\w+)` \| (\d+) \|", TEXT, re.MULTILINE)}
    assert documented == {(code, status) for code, status in actual if code not in NEVER_ANSWERED}


def test_settings() -> None:
    documented = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", TEXT, re.MULTILINE)
    assert documented == [(f.name, repr(f.default)) for f in dataclasses.fields(ServerSettings)]
