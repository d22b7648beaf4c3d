"""How the page looks: light and dark, wide and narrow. Its screenshots are kept in out/page."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("playwright", reason="needs the extra page-test")

from tests.engine.test_tiling import picture
from tests.page.browsing import Visit
from tests.serving.images import png

pytestmark = pytest.mark.browser

LUMINANCE = """
() => {
  const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number);
  return (r + g + b) / 3;
}
"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_until_chosen(visit: Callable[..., Visit], scheme: str) -> None:
    tab = visit(color_scheme=scheme)

    def is_dark() -> bool:
        return tab.page.evaluate(LUMINANCE) < 128

    assert is_dark() == (scheme == "dark")
    tab.screenshot(f"empty-{scheme}")
    tab.page.locator("#theme").click()
    assert is_dark() == (scheme == "light")
    tab.page.reload()
    assert is_dark() == (scheme == "light")
    tab.page.locator("#theme").click()
    tab.upscale(png(picture(8, 6)))
    tab.screenshot(f"compared-{scheme}")


@pytest.mark.parametrize("width", [320, 360])
def test_a_phone_scrolls_in_one_direction(visit: Callable[..., Visit], width: int) -> None:
    tab = visit(viewport={"width": width, "height": 640}, has_touch=True, is_mobile=True)
    assert tab.page.evaluate(OVERFLOW) <= 0
    tab.screenshot(f"empty-{width}")
    tab.choose("a-name-without-any-place-to-break-it_" * 3 + ".png", png(picture(12, 20)))
    tab.until("seen.previews.length > 0")  # how many come depends on how fast they are taken
    assert tab.page.evaluate(OVERFLOW) <= 0
    tab.screenshot(f"working-{width}")
    tab.wait_for("done")
    assert tab.page.evaluate(OVERFLOW) <= 0
    tab.screenshot(f"compared-{width}")
    small = [
        name
        for name in ("#download", "#open", "#again", "#zoom-in", "#fit", "#theme", "#divider")
        if min(tab.box(name)[2:]) < 40
    ]
    assert small == []  # a finger's width


def test_a_desktop_needs_no_scrolling(visit: Callable[..., Visit]) -> None:
    tab = visit()
    tab.upscale(png(picture(8, 6)))
    assert tab.page.evaluate("document.documentElement.scrollHeight - innerHeight") <= 0


def test_who_wants_no_motion_gets_none(visit: Callable[..., Visit]) -> None:
    tab = visit(reduced_motion="reduce")
    tab.upscale(png(picture(8, 8)))
    longest = "Math.max(0, ...document.getAnimations().map((each) => each.effect.getComputedTiming().duration))"
    assert tab.page.evaluate(longest) == 0


def test_all_is_reached_by_the_tab_key(visit: Callable[..., Visit]) -> None:
    tab = visit()
    tab.upscale(png(picture(8, 8)))
    tab.page.locator("#theme").focus()
    reached = []
    for _ in range(20):
        tab.page.keyboard.press("Tab")
        reached.append(tab.page.evaluate("document.activeElement.id || document.activeElement.localName"))
    wanted = ["divider", "zoom-out", "zoom-in", "fit", "download", "seed", "dice", "cfg", "scales", "summary", "again"]
    assert [name for name in reached if name in wanted][: len(wanted)] == wanted
