"""Suites, rows, means and what files hold of them."""

from __future__ import annotations

import json
import math

import pytest

from tests.evaluation.pictures import gray, scene
from varsr_engine.evaluation.metrics import NO_NIQE_PARAMS, NO_REFERENCE, NO_SEAMS, Metric, Sample, Suite, offline_suite
from varsr_engine.evaluation.scores import ALL, Findings, Row, csv_table, gaps, shown_spread, spread

QUALITY = Metric("quality", "Quality", "a variant", "higher", 2, lambda sample: 1.0)


def findings(*rows: Row, **suite: object) -> Findings:
    return Findings({"what": "pairs"}, Suite([QUALITY], dict(suite)), list(rows))  # type: ignore[arg-type]


def row(name: str, score: float | None, set_name: str = "s") -> Row:
    reasons = {"quality": "too dark"} if score is None else {}
    return Row(set_name, name, f"{name}.png", size=(4, 3), scores={"quality": score}, reasons=reasons)


def test_the_offline_suite() -> None:
    suite = offline_suite()
    assert [metric.key for metric in suite.metrics] == ["psnr_y", "ssim_y", "ms_ssim_y", "seam_score"]
    assert suite.skipped == {"niqe": NO_NIQE_PARAMS, "parity_psnr": NO_REFERENCE}
    assert "fit_niqe" in NO_NIQE_PARAMS and "--niqe-params" in NO_NIQE_PARAMS
    image = scene(161, 161)
    scores, reasons = suite.measure(Sample(image, image, seam_score=1.25))
    assert scores == {"psnr_y": math.inf, "ssim_y": 1, "ms_ssim_y": 1, "seam_score": 1.25} and reasons == {}


def test_what_a_picture_cannot_have_says_why() -> None:
    suite = offline_suite(has_reference=True)
    scores, reasons = suite.measure(Sample(gray(3), gray(4)))
    assert scores["psnr_y"] is not None
    assert reasons["ms_ssim_y"] == "MS-SSIM needs 161 pixels a side for its 5 scales, got 32×32"
    assert reasons["parity_psnr"] == "no picture of that name in --reference"
    assert reasons["seam_score"] == "one tile: there are no seams"
    scores, reasons = suite.measure(Sample(gray(3), reference=gray(4)))
    assert scores["parity_psnr"] == pytest.approx(20 * math.log10(255))
    assert reasons["psnr_y"] == "no ground truth"


def test_what_a_run_cannot_have() -> None:
    suite = offline_suite(has_truth=False, seams=False)
    assert suite.metrics == []
    assert suite.skipped["ssim_y"] == "no ground truth in any pair" and suite.skipped["seam_score"] == NO_SEAMS


def test_spread() -> None:
    value = spread([1.0, None, 3.0])
    assert value is not None
    assert (value.mean, value.least, value.most, value.count) == (2, 1, 3, 2)
    assert value.deviation == pytest.approx(math.sqrt(2))
    assert shown_spread(value, 1) == "2.0 ± 1.4"
    assert spread([None]) is None and shown_spread(None, 1) == "–"
    infinite = spread([1.0, math.inf])
    assert infinite is not None and infinite.deviation is None and shown_spread(infinite, 1) == "inf"


def test_means_are_of_sets_and_of_all() -> None:
    result = findings(row("a", 1), row("b", 3), row("c", 8, "t"), row("d", None, "t"))
    means = {name: values["quality"].mean for name, values in result.summaries().items()}
    assert means == {"s": 2, "t": 8, ALL: 4}
    assert list(findings(row("a", 1)).summaries()) == ["s"]
    assert findings(row("a", None)).summaries() == {"s": {}}


def test_gaps_put_equal_reasons_together() -> None:
    result = findings(row("a", None), row("b", 3), x="not here", y="not here", z="broken")
    assert gaps(result) == [("x, y", "not here"), ("z", "broken"), ("quality of 1 of 2 pictures", "too dark")]


def test_json_holds_no_infinity() -> None:
    failed = Row("s", "bad", "bad.png", error={"code": "invalid_image", "message": "corrupt"})
    result = findings(row("a", math.inf), failed, x="not here")
    text = json.dumps(result.as_json(), allow_nan=False)
    loaded = json.loads(text)
    assert loaded["results"][0]["scores"] == {"quality": "inf"}
    assert loaded["results"][1] == {"set": "s", "name": "bad", "low": "bad.png", "error": failed.error}
    assert loaded["means"]["s"]["quality"]["mean"] == "inf" and loaded["skipped"] == {"x": "not here"}
    assert loaded["summary"] == {"scored": 1, "failed": 1, "interrupted": False}
    assert loaded["metrics"] == [{"key": "quality", "heading": "Quality", "variant": "a variant", "better": "higher"}]


def test_csv() -> None:
    failed = Row("s", "bad", "bad.png", error={"code": "invalid_image", "message": "corrupt"})
    header, *lines = csv_table(findings(row("a", 1 / 3), row("b", None), failed, x="not here"))
    assert header[:7] == ["set", "name", "low", "truth", "output", "width", "height"]
    assert header[7:] == ["quality", "seconds", "error", "not_measured"]
    assert lines[0][5:] == ["4", "3", repr(1 / 3), "", "", "x: not here"]
    assert lines[1][7:] == ["", "", "", "x: not here; quality: too dark"]
    assert lines[2][7:] == ["", "", "corrupt", "x: not here"]
    assert all(len(line) == len(header) for line in lines)
