"""The page: whole, by itself, safe for any name, and (marked browser) used with a keyboard in Chromium."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.pictures import noisy, scene
from varsr_engine.evaluation.metrics import Metric, Suite
from varsr_engine.evaluation.page import Page
from varsr_engine.evaluation.pixels import read_pixels
from varsr_engine.evaluation.scores import Findings, Row

NASTY = """</script><script>alert('x')</script>"><img src=x onerror=alert(1)>{{data}} & Ω"""
VOID = {"meta", "img", "input", "link", "br"}
QUALITY = Metric("quality", "Quality", "a variant <b>", "higher", 2, lambda sample: 1.0)


class Outline(HTMLParser):
    """Checks that elements are closed in order; keeps tags, texts of scripts, and every attribute."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def findings(*names: str) -> Findings:
    rows = [Row("set", name, f"{name}.png", scores={"quality": 2.0 + i}, seconds=0.5) for i, name in enumerate(names)]
    bad = Row("set", NASTY, "bad.png", error={"code": "invalid_image", "message": f"corrupt {NASTY}"})
    facts = {"what": NASTY, "model": "varsr-mini"}
    return Findings(facts, Suite([QUALITY], {"lpips": "not here"}), [*rows, bad], warnings=[f"left out: {NASTY}"])


def write(target: Path, *names: str) -> tuple[Path, str]:
    result, page = findings(*names), Page(target)
    for i, row in enumerate(result.rows[:-1]):
        truth = scene(40, 60, i)
        page.add(row, {"input": truth[::4, ::4], "result": noisy(truth, 8), "ground truth": truth})
    page.write(result)
    return page.path, page.path.read_text(encoding="utf-8")


@pytest.mark.parametrize("target", ["report.html", "report"])
def test_it_is_whole_and_asks_for_nothing(tmp_path: Path, target: str) -> None:
    path, text = write(tmp_path / target, "a", NASTY)
    assert path == tmp_path / ("report.html" if target.endswith("html") else "report/index.html")
    outline = Outline(text)
    assert outline.tags.count("script") == 2 and outline.tags.count("table") == 2
    assert "http:" not in text and "https:" not in text and "//" not in text.replace("// ", "").split("<main>")[0]
    assert not any(tag in outline.tags for tag in ("link", "iframe", "base", "object"))
    sources = [value for name, value in outline.attributes if name in ("src", "href")]
    assert all(value is not None and value.startswith("data:image/") for value in sources)
    assert "color-scheme: light dark" in text


@pytest.mark.parametrize("target", ["report.html", "report"])
def test_names_are_text(tmp_path: Path, target: str) -> None:
    _, text = write(tmp_path / target, NASTY)
    outline = Outline(text)
    assert not any(name.startswith("on") for name, _ in outline.attributes)
    data, _ = outline.texts["script"]
    assert json.loads(data)[0]["name"] == NASTY
    assert any(NASTY in part for part in ("".join(outline.texts[tag]) for tag in ("button", "td", "li", "h1", "dd")))


def test_pictures_in_the_file(tmp_path: Path) -> None:
    path, text = write(tmp_path / "report.html", "a")
    (entry,) = json.loads(Outline(text).texts["script"][0])
    assert list(entry["views"]) == ["input", "result", "ground truth"] and entry["size"] == [60, 40]
    assert all(url.startswith("data:image/webp;base64,") for url in entry["views"].values())
    assert list(tmp_path.iterdir()) == [path]


def test_pictures_in_a_folder(tmp_path: Path) -> None:
    _, text = write(tmp_path / "report", "a", "b")
    first, second = json.loads(Outline(text).texts["script"][0])
    assert first["views"]["result"] == "images/0001-result.png"
    for i, entry in enumerate((first, second)):
        saved = read_pixels(tmp_path / "report" / entry["views"]["ground truth"])
        assert np.array_equal(saved, scene(40, 60, i))


def test_what_the_tables_hold(tmp_path: Path) -> None:
    outline = Outline(write(tmp_path / "report.html", "a", "b")[1])
    cells = outline.texts["td"]
    assert "2.00" in cells and "3.00" in cells and "2.50 ± 0.71" in cells
    assert any(cell.startswith("corrupt") for cell in cells)
    terms = dict(zip(outline.texts["dt"], outline.texts["dd"], strict=False))
    assert terms["lpips"] == "not here" and terms["model"] == "varsr-mini" and terms["Quality ↑"] == "a variant <b>"


@pytest.mark.browser
@pytest.mark.parametrize("target", ["report.html", "report"])
def test_with_a_keyboard(tmp_path: Path, target: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    path, _ = write(tmp_path / target, "first", "second", "third")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        complaints: list[str] = []
        requested: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("request", lambda request: requested.append(request.url))
        page.goto(path.as_uri())
        page.get_by_role("button", name="second", exact=True).focus()
        page.keyboard.press("Enter")
        viewer = page.locator("#viewer")
        sync_api.expect(viewer).to_be_visible()
        sync_api.expect(page.locator("#viewer-name")).to_have_text("second")
        assert page.locator("#right").input_value() == "result" and page.locator("#left").input_value() == "input"
        before = page.locator("#zoom").inner_text()
        for key in ("ArrowRight", "ArrowRight", "+", "PageDown"):
            page.keyboard.press(key)
        assert page.locator("#split").input_value() == "54" and page.locator("#zoom").inner_text() != before
        sync_api.expect(page.locator("#viewer-name")).to_have_text("third")
        assert page.locator("#under").evaluate("image => image.decode().then(() => image.naturalWidth)") == 15
        page.locator("#left").select_option("ground truth")
        assert page.locator("#under").evaluate("image => image.decode().then(() => image.naturalWidth)") == 60
        page.keyboard.press("Escape")
        sync_api.expect(viewer).to_be_hidden()
        quality = page.locator("th[data-sort=number] button").first
        for order in ("first", "third"):
            quality.click()
            assert order in page.locator("[data-open]").first.inner_text()
        assert complaints == [] and all(url.startswith(("file:", "data:")) for url in requested)
        browser.close()
