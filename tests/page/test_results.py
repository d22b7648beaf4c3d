"""What the page keeps: results that can be shown again, and nothing that it no longer needs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("playwright", reason="needs the extra page-test")

from playwright.sync_api import expect

from tests.engine.test_tiling import picture
from tests.page.browsing import Visit
from tests.serving.images import png
from varsr_engine.engine.engine import Engine

pytestmark = pytest.mark.browser


def test_history_restores_a_comparison(visit: Callable[..., Visit], engine: Engine) -> None:
    first, second = png(picture(8, 8, seed=1)), png(picture(8, 6, seed=2))
    tab = visit()
    tab.upscale(first, "first.png")
    tab.upscale(second, "second.png")
    tab.page.locator("#seed").fill("5")
    tab.page.locator("#again").click()
    expect(tab.page.locator("#history-list button")).to_have_count(3, timeout=60_000)

    def current() -> list[str | None]:
        buttons = tab.page.locator("#history-list button").all()
        return [button.get_attribute("aria-current") for button in buttons]  # newest first

    assert current() == ["true", "false", "false"]
    assert tab.download() == ("second_x4.png", engine.upscale(second, seed=5).encode("PNG"))
    tab.page.locator("#history-list button").last.click()
    expect(tab.page.locator("#caption")).to_contain_text("first.png")
    assert current() == ["false", "false", "true"]
    expect(tab.page.locator("#before-label")).to_have_text("Bicubic")
    assert tab.page.evaluate("document.querySelector('#bicubic').width") == 32
    assert tab.download() == ("first_x4.png", engine.upscale(first).encode("PNG"))

    tab.page.locator("#again").click()  # works on what is shown
    expect(tab.page.locator("#history-list button")).to_have_count(4, timeout=60_000)
    assert tab.download() == ("first_x4.png", engine.upscale(first, seed=5).encode("PNG"))


def test_urls_of_images_are_given_back(visit: Callable[..., Visit]) -> None:
    """However many results there were, those of one are held: its input, its output, and what Download saves."""
    tab = visit()
    for n in range(3):
        tab.upscale(png(picture(8, 8, seed=n)))
        expect(tab.page.locator("#history-list button")).to_have_count(n + 1)
    tab.page.locator("#history-list button").last.click()
    expect(tab.page.locator("#history-list button").last).to_have_attribute("aria-current", "true")
    tab.until("seen.urls.size <= 3")
    assert tab.page.evaluate("seen.urls.size") == 3
