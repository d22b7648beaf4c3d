"""docs/presets.md says what was measured, and what the presets and the memory plans are now."""

from __future__ import annotations

from benchmarks.preset_cost import PAGE, newest, page
from varsr_engine.engine.presets import PRESETS


def test_the_page_is_made_from_the_newest_result() -> None:
    document = PAGE.read_text()
    assert page(document, newest()) == document, "run python -m benchmarks.preset_cost"


def test_the_presets_are_those_that_were_measured() -> None:
    result = newest()
    assert result["presets"] == {name: preset._asdict() for name, preset in PRESETS.items()}
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["quality"]["psnr_to_exact"] is None
    assert rows["fast"]["time_ratio"]["median"] < rows["balanced"]["time_ratio"]["median"] < 1
