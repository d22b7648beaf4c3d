"""What is asked of one H200 with the published network at 512 x 512 pixels, and what a result says to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Content = dict[str, Any]


def item(content: Content, part: str, name: str) -> dict[str, Any]:
    """An item's result; empty where it was not measured."""
    found: dict[str, Any] = content["parts"].get(part, {}).get("items", {}).get(name, {})
    return found if found.get("status") == "ok" else {}


def milliseconds(name: str) -> Callable[[Content], float | None]:
    def value(content: Content) -> float | None:
        wall = item(content, "engine", name).get("wall_s")
        return None if wall is None else 1e3 * wall["median"]

    return value


def gigabytes(content: Content) -> float | None:
    peak = item(content, "engine", "b1 fp16").get("peak_bytes")
    return None if peak is None else peak / 1e9


def speedup(*names: str) -> Callable[[Content], float | None]:
    """Over the fastest of these baselines."""

    def value(content: Content) -> float | None:
        ratios = [found["ratio"]["median"] for name in names if (found := item(content, "baselines", name))]
        return min(ratios) if ratios else None

    return value


@dataclass(frozen=True)
class Target:
    """steps: what is asked first, and what after that; floor: what arithmetic and traffic leave, where it is a time."""

    name: str
    unit: str
    value: Callable[[Content], float | None]
    steps: tuple[float, ...]
    at_least: bool = False
    floor: float | None = None

    def met(self, value: float) -> list[float]:
        return [s for s in self.steps if (value >= s if self.at_least else value <= s)]


TARGETS = (
    Target("fp16, batch 1", "ms", milliseconds("b1 fp16"), (38, 32, 28), floor=19.2),
    Target("fp16, batch 8", "ms", milliseconds("b8 fp16"), (240, 205), floor=143.7),
    Target("fp8, batch 1", "ms", milliseconds("b1 fp8"), (30, 26), floor=13.0),
    Target("over published style, eager, batch 1", "x", speedup("eager b1"), (3,), at_least=True),
    Target(
        "over published style, compiled, batch 1",
        "x",
        speedup("compiled dynamic b1", "compiled static b1"),
        (2,),
        at_least=True,
    ),
    Target("memory, batch 1", "GB", gigabytes, (4,)),
)


def table(content: Content) -> str:
    """A Markdown table of what is asked and what was measured."""
    lines = ["| asked of one H200 | measured | asked | floor |", "| --- | --- | --- | --- |"]
    for target in TARGETS:
        value, sign = target.value(content), "≥" if target.at_least else "≤"
        asked = ", then ".join(f"{step:g}" for step in target.steps)
        said = "not measured"
        if value is not None:
            met = target.met(value)
            said = f"{value:.4g} {target.unit}, " + (f"meets {sign} {met[-1]:g}" if met else "missed")
        floor = "" if target.floor is None else f"{target.floor:g} {target.unit}"
        lines.append(f"| {target.name} | {said} | {sign} {asked} {target.unit} | {floor} |")
    return "\n".join(lines)
