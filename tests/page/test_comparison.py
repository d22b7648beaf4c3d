"""Before and after: the divider by mouse, touch and keys; zoom and pan; what the picture is compared with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright", reason="needs the extra page-test")

from playwright.sync_api import Browser, expect

from tests.engine.test_tiling import picture
from tests.page.browsing import Visit
from tests.serving.conftest import Running
from tests.serving.images import png

pytestmark = pytest.mark.browser

SOURCE = picture(16, 12)

# The pixels of the canvas that bicubic is shown on, row by row, as RGBA.
SHOWN = """
async () => {
  const shown = document.querySelector("#bicubic");
  const context = new OffscreenCanvas(shown.width, shown.height).getContext("2d");
  context.drawImage(shown, 0, 0);
  return [shown.width, shown.height, ...context.getImageData(0, 0, shown.width, shown.height).data];
}
"""
RESIZE = """
async ([data, width, height, toWidth, toHeight]) => {
  const {bicubic} = await import("./static/bicubic.js");
  return [...bicubic(new ImageData(new Uint8ClampedArray(data), width, height), toWidth, toHeight).data];
}
"""


@pytest.fixture(scope="module")
def comparison(browser: Browser, server: Running) -> Iterator[Visit]:
    """A tab that compares a result with its input."""
    tab = Visit(browser, server.url, has_touch=True)
    tab.upscale(png(SOURCE))
    expect(tab.page.locator("#before-label")).to_have_text("Bicubic")
    tab.until("!document.querySelector('#viewer').classList.contains('glide')")
    yield tab
    tab.leave()


@pytest.fixture
def compared(comparison: Visit) -> Visit:
    """The same, as at its beginning: the whole picture, the divider in its middle."""
    comparison.page.locator("#divider").focus()
    for key in ("0", "Home", *["PageUp"] * 5):
        comparison.page.keyboard.press(key)
    assert (comparison.zoom(), comparison.split()) == ("1×", 50)
    return comparison


def resized(rgb: np.ndarray, width: int, height: int) -> np.ndarray:
    """By Pillow, in float; (height, width, 3) uint8."""
    planes = [Image.fromarray(rgb[..., c].astype(np.float32)) for c in range(3)]
    parts = [np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC)) for plane in planes]
    return np.clip(np.round(np.stack(parts, axis=-1)), 0, 255).astype(np.uint8)


def shown_share(tab: Visit) -> float:
    """Where the divider is on the picture that is seen, in percent of its width."""
    left, _, width, _ = tab.box("#divider")
    start, _, length, _ = tab.box(".side.before .picture")
    return (left + width / 2 - start) / length * 100


def test_bicubic_is_pillows(compared: Visit) -> None:
    width, height, *rgba = compared.page.evaluate(SHOWN)
    assert (width, height) == (64, 48)
    shown = np.array(rgba).reshape(height, width, 4)
    assert np.abs(shown[..., :3] - resized(SOURCE, 64, 48).astype(int)).max() <= 1
    assert (shown[..., 3] == 255).all()


@pytest.mark.parametrize("size", [(80, 56), (33, 9), (7, 40), (20, 14)])
def test_resizing_either_way_is_pillows(compared: Visit, size: tuple[int, int]) -> None:
    source = picture(20, 14)
    rgba = np.dstack([source, np.full((14, 20, 1), 255, np.uint8)])
    data = compared.page.evaluate(RESIZE, [rgba.ravel().tolist(), 20, 14, *size])
    shown = np.array(data).reshape(size[1], size[0], 4)[..., :3]
    assert np.abs(shown - resized(source, *size).astype(int)).max() <= 1


def test_transparent_pixels_leave_no_fringe(compared: Visit) -> None:
    """The colour of a pixel that is not seen shows nowhere."""
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, :4] = (200, 100, 50, 255)
    data = compared.page.evaluate(RESIZE, [rgba.ravel().tolist(), 8, 8, 32, 32])
    shown = np.array(data).reshape(32, 32, 4)
    seen = shown[shown[..., 3] > 8]
    assert 0 < len(seen) < 32 * 32
    assert np.abs(seen[:, :3] - (200, 100, 50)).max() <= 1


def test_the_divider_by_mouse(compared: Visit) -> None:
    tab = compared
    assert tab.split() == 50
    left, top, width, height = tab.box(".side.before .picture")
    grip = tab.box("#divider")
    tab.page.mouse.move(grip[0] + grip[2] / 2, top + height / 2)
    tab.page.mouse.down()
    tab.page.mouse.move(left + width * 0.25, top + height / 2, steps=4)
    tab.page.mouse.up()
    assert tab.split() == pytest.approx(25, abs=1)
    assert shown_share(tab) == pytest.approx(25, abs=1)
    tab.page.mouse.move(left + width * 0.6, top + 20)  # not on the grip: any place will do
    tab.page.mouse.down()
    tab.page.mouse.move(left + width * 0.9, top + 20, steps=4)
    tab.page.mouse.up()
    assert tab.split() == pytest.approx(90, abs=1)
    tab.page.mouse.move(left + width * 0.1, top + 20)  # nothing is held any more
    assert tab.split() == pytest.approx(90, abs=1)


def test_the_divider_by_touch(compared: Visit) -> None:
    tab, touch = compared, compared.touch()
    left, top, width, height = tab.box(".side.before .picture")
    y = top + height / 2
    touch("touchStart", [(left + width * 0.5, y)])
    for share in (0.55, 0.65, 0.75):
        touch("touchMove", [(left + width * share, y)])
    touch("touchEnd", [])
    assert tab.split() == pytest.approx(75, abs=1)
    assert shown_share(tab) == pytest.approx(75, abs=1)


def test_the_divider_by_keys(compared: Visit) -> None:
    tab, divider = compared, compared.page.locator("#divider")
    divider.focus()
    for key, percent in [("ArrowRight", 52), ("ArrowLeft", 50), ("PageUp", 60), ("Home", 0), ("End", 100)]:
        tab.page.keyboard.press(key)
        assert tab.split() == percent
        assert shown_share(tab) == pytest.approx(percent, abs=0.5)
    assert divider.get_attribute("aria-valuetext") == "100% Bicubic, 0% micro"
    tab.page.locator("#seed").focus()
    tab.page.keyboard.press("ArrowLeft")  # keys in a field are the field's
    assert tab.split() == 100


def test_zoom_and_pan(compared: Visit) -> None:
    tab = compared
    assert tab.zoom() == "1×"
    left, top, width, height = tab.box(".side.before .picture")
    tab.page.keyboard.press("+")
    assert tab.zoom() == "1.5×"
    tab.page.keyboard.press("0")
    assert tab.zoom() == "1×" and tab.box(".side.before .picture") == pytest.approx((left, top, width, height), abs=0.5)

    # The wheel keeps the point under it in its place.
    x, y = left + width * 0.3, top + height * 0.4
    tab.page.mouse.move(x, y)
    tab.page.mouse.wheel(0, -400)
    expect(tab.page.locator("#zoom-level")).to_have_text("2.7×")
    assert "pixelated" in (tab.page.locator("#viewer").get_attribute("class") or "")
    new_left, new_top, new_width, new_height = tab.box(".side.before .picture")
    assert new_width / width == pytest.approx(np.e, rel=0.01)
    assert (x - new_left) / new_width == pytest.approx(0.3, abs=0.01)
    assert (y - new_top) / new_height == pytest.approx(0.4, abs=0.01)

    # Zoomed in, a drag moves the picture and not the divider; before and after stay together.
    tab.page.mouse.down()
    tab.page.mouse.move(x - 60, y - 40, steps=4)
    tab.page.mouse.up()
    moved = tab.box(".side.before .picture")
    assert moved[:2] == pytest.approx((new_left - 60, new_top - 40), abs=1.5)
    assert tab.box(".side.after .picture") == pytest.approx(moved, abs=0.01)
    assert tab.split() == 50
    tab.page.keyboard.press("Shift+ArrowRight")
    assert tab.box(".side.before .picture")[0] == pytest.approx(moved[0] - 80, abs=1.5)

    for _ in range(8):
        tab.page.locator("#zoom-in").click()
    assert tab.zoom() == "16×"  # and no further
    tab.page.locator("#fit").click()
    assert tab.zoom() == "1×"


def test_double_click_and_back(compared: Visit) -> None:
    left, top, width, height = compared.box(".side.before .picture")
    point = (left + width * 0.25, top + height * 0.25)
    compared.page.mouse.dblclick(*point)
    assert compared.zoom() == "4×"
    compared.page.wait_for_timeout(350)  # else it were a third click
    compared.page.mouse.dblclick(*point)
    assert compared.zoom() == "1×"


def test_two_fingers_zoom(compared: Visit) -> None:
    tab, touch = compared, compared.touch()
    left, top, width, height = tab.box(".side.before .picture")
    x, y = left + width * 0.3, top + height / 2
    touch("touchStart", [(x - 40, y)])
    touch("touchStart", [(x - 40, y), (x + 40, y)])
    for spread in (60, 90, 120):
        touch("touchMove", [(x - spread, y), (x + spread, y)])
    touch("touchEnd", [])
    assert tab.zoom() == "3×"
    assert tab.split() == 50
