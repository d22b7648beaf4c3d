"""From an image that comes into the page to the file that is saved."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest

pytest.importorskip("playwright", reason="needs the extra page-test")

from playwright.sync_api import expect

from tests.engine.test_tiling import picture
from tests.page.browsing import Visit
from tests.serving.conftest import Running
from tests.serving.images import encoded, png
from tests.serving.test_upscale import events_of, eventually
from varsr_engine.engine.engine import Engine

pytestmark = pytest.mark.browser

# Gives the page a file as a user's hand does: by an event that carries it.
GIVE = """
([event, name, base64]) => {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name, {type: "image/png"}));
  const target = document.querySelector("#stage");
  if (event === "paste") return target.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
  for (const type of ["dragenter", "dragover", "drop"]) {
    target.dispatchEvent(new DragEvent(type, {dataTransfer: data, bubbles: true, cancelable: true}));
  }
}
"""


def test_a_file_sharpens_and_is_saved_with_the_bytes_of_the_api(
    visit: Callable[..., Visit], mini_server: Running, mini: Engine
) -> None:
    source = png(picture(32, 24))
    tab = visit(mini_server.url)
    tab.page.locator("#seed").fill("7")
    tab.choose("cat.of.mine.png", source)
    tab.wait_for("done")
    name, data = tab.download()
    assert name == "cat.of.mine_x4.png"
    assert data == mini_server.upscale(source, "?scale=4&seed=7").content
    assert data == mini.upscale(source, scale=4, seed=7).encode("PNG")

    # The stages that the API tells of are those that were shown, in its order.
    told = events_of(mini_server.upscale(source, "?scale=4&seed=7", accept="text/event-stream").text)
    stages = [f"0:{data['stage']}" for name, data in told if name == "preview"]
    scales = [stage.removeprefix("0:scale.") for stage in stages if "scale" in stage]
    assert tab.page.evaluate("seen.scales") == scales
    previews = tab.page.evaluate("seen.previews")
    places = [stages.index(shown) for shown in previews]
    assert len(places) >= 3 and places == sorted(set(places))  # one that comes while another is decoded may be left out

    assert "32 × 24 → 128 × 96" in tab.page.locator("#caption").inner_text()
    assert "seed 7" in tab.page.locator("#caption").inner_text()
    expect(tab.page.locator("#after-label")).to_have_text(mini.model_id)
    posted = [url for url in tab.requested if "/v1/upscale" in url]
    assert posted == [f"{mini_server.url}/v1/upscale?scale=4&seed=7&format=png"]  # and not the file's name


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_dropped_and_pasted(visit: Callable[..., Visit], engine: Engine, event: str) -> None:
    source = png(picture(8, 6))
    tab = visit()
    tab.scale("2")
    tab.page.evaluate(GIVE, [event, "given.png", base64.b64encode(source).decode()])
    tab.wait_for("done")
    assert tab.download() == ("given_x2.png", engine.upscale(source, scale=2).encode("PNG"))
    expect(tab.page.locator("html")).not_to_have_class("dragging")


def test_settings_reach_the_engine(visit: Callable[..., Visit], engine: Engine) -> None:
    source = encoded(picture(15, 10), "JPEG")
    tab = visit()
    tab.scale("longest")
    tab.page.locator("#longest-side").fill("40")
    tab.page.locator("#cfg").fill("1.5")
    tab.page.locator("#scales").select_option("3")
    tab.page.locator("summary").click()
    tab.page.locator("#color-fix").select_option("wavelet")
    tab.page.locator("#format").select_option("webp")
    tab.page.locator("#dice").click()
    seed = tab.page.locator("#seed").input_value()
    assert seed.isdecimal() and seed != "0"
    tab.choose("photo.jpeg", source, "image/jpeg")
    tab.wait_for("done")
    settings = dict(longest_side=40, cfg=1.5, stop_at_scale=3, color_fix="wavelet", seed=int(seed))
    expected = engine.upscale(source, **settings).encode("WEBP", quality=95)
    assert tab.download() == ("photo_40px_draft.webp", expected)
    assert "draft" in tab.page.locator("#after-label").inner_text()


def test_tiles_are_counted_and_cancel_stops_them(visit: Callable[..., Visit], mini_server: Running) -> None:
    tab = visit(mini_server.url)
    tab.choose("large.png", png(picture(80, 80)))
    tab.until("seen.previews.includes('0:refiner')")
    tab.until("/^Scale [1-6] of 6 · tile 2 of 9$/.test(document.querySelector('#progress-text').textContent)")
    share = tab.page.evaluate("document.querySelector('#progress').value")
    assert 0 < share < 1
    tab.page.locator("#cancel").click()
    tab.wait_for("ready")
    assert eventually(lambda: mini_server.service.in_flight == 0)
    assert eventually(lambda: "varsr_queue_units 0.0" in mini_server.client.get("/metrics").text)
    shown = tab.page.evaluate("seen.previews.length")
    expect(tab.page.locator("#again")).to_be_focused()

    tab.scale("1")
    tab.page.locator("#again").click()  # the same picture, smaller: one tile
    tab.wait_for("done")
    assert tab.page.evaluate("seen.previews.length") > shown
    assert "80 × 80 → 80 × 80" in tab.page.locator("#caption").inner_text()


def test_escape_cancels_and_another_picture_takes_over(visit: Callable[..., Visit]) -> None:
    tab = visit()
    tab.choose("large.png", png(picture(100, 100)))
    tab.until("seen.previews.length > 0")
    tab.page.keyboard.press("Escape")
    tab.wait_for("ready")
    tab.choose("large.png", png(picture(100, 100)))
    tab.wait_for("working")
    tab.upscale(png(picture(8, 8)), "small.png")
    assert tab.page.locator("#caption").inner_text().startswith("small.png")
    assert tab.page.locator("#history-list button").count() == 1


def test_the_example_is_that_of_the_repository(visit: Callable[..., Visit], server: Running) -> None:
    from tests.serving.test_process import ROOT

    assert server.client.get("/static/example.jpg").content == (ROOT / "examples" / "photo.jpg").read_bytes()
    tab = visit()
    tab.scale("1")
    tab.page.locator("#example").click()
    tab.wait_for("done")
    assert tab.download()[0] == "example_x1.png"
