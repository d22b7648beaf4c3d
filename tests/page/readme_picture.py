"""The README's picture of the page: `python -m tests.page.readme_picture` writes docs/page.jpg."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

from tests.page.browsing import Visit, find_chromium
from tests.serving.conftest import running
from varsr_engine.engine.engine import Engine

ROOT = Path(__file__).parents[2]


def main() -> None:
    engine = Engine.from_pretrained("varsr-mini", device="cpu", numerics="batch_invariant")
    photo = (ROOT / "examples" / "photo.jpg").read_bytes()
    with running(engine, request_timeout=1800) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium())
        tab = Visit(browser, server.url, viewport={"width": 1200, "height": 760}, color_scheme="light")
        tab.choose("photo.jpg", photo, "image/jpeg")
        expect(tab.page.locator("body")).to_have_attribute("data-state", "done", timeout=1_800_000)
        tab.until("document.querySelector('#before-label').textContent === 'Bicubic'")
        tab.until("document.getAnimations().every((each) => each.playState === 'finished')")
        tab.page.locator("#divider").evaluate("(divider) => divider.blur()")
        shot = Image.open(io.BytesIO(tab.page.screenshot())).convert("RGB")
        shot.save(ROOT / "docs" / "page.jpg", quality=88, optimize=True)
        tab.leave()
        browser.close()
    engine.close()


if __name__ == "__main__":
    main()
