"""The page as somebody uses it: a tab of a real Chromium, and what it did behind the scenes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, expect

SCREENSHOTS = Path(__file__).parents[2] / "out" / "page"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60_000  # milliseconds for an upscaling, on a machine that is busy with other things

# Runs before the page's own scripts: what it shows, in order, and what it holds.
WATCH = """
window.seen = {previews: [], scales: [], violations: [], urls: new Set()};
const {createObjectURL, revokeObjectURL} = URL;
URL.createObjectURL = (blob) => { const url = createObjectURL.call(URL, blob); seen.urls.add(url); return url; };
URL.revokeObjectURL = (url) => { seen.urls.delete(url); revokeObjectURL.call(URL, url); };
document.addEventListener("securitypolicyviolation", (event) => seen.violations.push(event.violatedDirective));
document.addEventListener("DOMContentLoaded", () => {
  new MutationObserver((changes) => {
    for (const {target, attributeName} of changes) {
      const value = target.getAttribute(attributeName);
      if (value !== null) seen[attributeName === "data-preview" ? "previews" : "scales"].push(value);
    }
  }).observe(document.body, {subtree: true, attributeFilter: ["data-preview", "data-scale"]});
});
"""


def find_chromium() -> str | None:
    """Its path: the one that CHROMIUM names, else a well-known name on the path."""
    given = os.environ.get("CHROMIUM")
    return given or next((path for name in NAMES if (path := shutil.which(name))), None)


class Visit:
    """One tab on a server's page. `page` is Playwright's."""

    def __init__(self, browser: Browser, url: str, refusals: Iterable[int] = (), **options: Any) -> None:
        """refusals: statuses of answers that the test expects; the browser logs them as errors."""
        self.url = url
        self.context = browser.new_context(**({"viewport": {"width": 1100, "height": 720}} | options))
        self.context.add_init_script(WATCH)
        self.page: Page = self.context.new_page()
        self.requested: list[str] = []
        self.complaints: list[str] = []
        self.refusals = list(refusals)
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(url)
        expect(self.page.locator("#stage")).to_be_visible()

    def _on_console(self, message: ConsoleMessage) -> None:
        expected = any(f"status of {status}" in message.text for status in self.refusals)
        if message.type in ("error", "warning") and not expected:
            self.complaints.append(message.text)

    @property
    def state(self) -> str | None:
        return self.page.locator("body").get_attribute("data-state")

    def wait_for(self, state: str) -> None:
        expect(self.page.locator("body")).to_have_attribute("data-state", state, timeout=PATIENCE)

    def choose(self, name: str, data: bytes, type: str = "image/png") -> None:
        """Pick a file by the button that is there for it."""
        button = self.page.locator("#choose" if self.state == "empty" else "#open")
        with self.page.expect_file_chooser() as chooser:
            button.click()
        chooser.value.set_files({"name": name, "mimeType": type, "buffer": data})

    def until(self, expression: str) -> None:
        """Wait until JavaScript is true. (Playwright's own way of it evaluates text, as the page's policy forbids.)"""
        for _ in range(PATIENCE // 20):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(20)
        raise AssertionError(f"never came true: {expression}")

    def upscale(self, data: bytes, name: str = "picture.png") -> None:
        """Pick a file, and wait for its result."""
        self.choose(name, data)
        self.wait_for("done")

    def scale(self, size: str) -> None:
        """Choose an output's size: 1, 2, 3, 4, 6, 8 or longest."""
        self.page.locator(f"[name=size][value='{size}']").check(force=True)

    def download(self) -> tuple[str, bytes]:
        """The result as the button saves it: its name, its bytes."""
        with self.page.expect_download() as saved:
            self.page.locator("#download").click()
        return saved.value.suggested_filename, Path(saved.value.path()).read_bytes()

    def split(self) -> float:
        return float(self.page.locator("#divider").get_attribute("aria-valuenow") or "nan")

    def zoom(self) -> str:
        return self.page.locator("#zoom-level").inner_text()

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """left, top, width, height of an element in the window."""
        box = self.page.locator(selector).bounding_box()
        assert box is not None
        return box["x"], box["y"], box["width"], box["height"]

    def touch(self) -> Callable[[str, list[tuple[float, float]]], None]:
        """touch(kind, fingers): touchStart, touchMove or touchEnd with fingers at these points of the window."""
        session = self.context.new_cdp_session(self.page)

        def send(kind: str, fingers: list[tuple[float, float]]) -> None:
            points = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(fingers)]
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        return send

    def screenshot(self, name: str) -> Path:
        """Kept as out/page/NAME.png. Waits for what moves."""
        self.until("document.getAnimations().every((each) => each.playState === 'finished')")
        path = SCREENSHOTS / f"{name}.png"
        self.page.screenshot(path=path)
        return path

    def leave(self) -> None:
        """Close the tab, and hold the page to what every visit must be: nothing went elsewhere, nothing went wrong."""
        violations = self.page.evaluate("seen.violations")
        self.context.close()
        elsewhere = [url for url in self.requested if not url.startswith((f"{self.url}/", f"blob:{self.url}/"))]
        assert elsewhere == []
        assert violations == []
        assert self.complaints == []
