"""What goes wrong is said in the server's words, and the page goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("playwright", reason="needs the extra page-test")

from playwright.sync_api import expect

from tests.engine.test_tiling import picture
from tests.page.browsing import PATIENCE, Visit
from tests.serving.conftest import Running, running
from tests.serving.images import encoded, png
from varsr_engine.engine.engine import Engine
from varsr_engine.serving.budget import BYTES_A_PIXEL

pytestmark = pytest.mark.browser

SMALL = png(picture(8, 8))


BROKEN = {
    "header": (b"\xff\xd8\xff\xe0 no JPEG at all", 400),
    "truncated": (encoded(picture(64, 64), "JPEG")[:900], 400),
    "another type": (b"GIF89a", 415),
}


def test_corrupt_files(visit: Callable[..., Visit], server: Running) -> None:
    tab = visit(refusals=(400, 415))
    notice = tab.page.locator("#notice-text")
    for name, (data, status) in BROKEN.items():
        answer = server.upscale(data)
        words = answer.json()["error"]["message"]
        assert answer.status_code == status
        tab.choose(f"{name}.jpg", data, "image/jpeg")
        expect(notice).to_contain_text(words[1:], timeout=PATIENCE)  # but for its capital
        assert tab.state in ("empty", "ready")
    assert notice.get_attribute("role") == "alert"
    with tab.page.expect_file_chooser() as chooser:
        tab.page.locator("#notice-action").click()
    chooser.value.set_files({"name": "whole.png", "mimeType": "image/png", "buffer": SMALL})
    tab.wait_for("done")
    expect(tab.page.locator("#notice")).to_be_hidden()


def test_a_setting_that_the_server_refuses(visit: Callable[..., Visit], server: Running) -> None:
    tab = visit()
    tab.refusals.append(422)
    tab.page.locator("#seed").fill(str(2**63))
    tab.choose("picture.png", SMALL)
    words = server.upscale(SMALL, f"?seed={2**63}").json()["error"]["message"]
    expect(tab.page.locator("#notice-text")).to_contain_text(words[1:])
    assert tab.state == "ready"
    tab.page.locator("#seed").fill("1")
    tab.page.locator("#again").click()
    tab.wait_for("done")


def test_a_setting_that_the_page_refuses(visit: Callable[..., Visit], server: Running) -> None:
    tab = visit()
    tab.page.locator("#seed").fill("lucky")
    tab.choose("picture.png", SMALL)
    tab.wait_for("ready")
    expect(tab.page.locator("#seed")).to_be_focused()
    assert not any("/v1/upscale" in url for url in tab.requested)


def test_a_busy_server_is_asked_again(visit: Callable[..., Visit], engine: Engine) -> None:
    large = png(picture(200, 200))
    held = len(large) + (200 * 200 + 800 * 800) * BYTES_A_PIXEL
    with running(engine, max_held_bytes=held) as server:  # that one, and nothing beside it
        tab = visit(server.url)
        expect(tab.page.locator("#model")).to_contain_text("micro")
        tab.refusals.append(429)
        query, headers = "?previews=none", {"content-type": "image/png", "accept": "text/event-stream"}
        with server.client.stream("POST", f"/v1/upscale{query}", content=large, headers=headers) as other:
            lines = other.iter_lines()  # kept: the connection closes with it
            assert next(lines) == "event: accepted"
            tab.choose("picture.png", SMALL)
            expect(tab.page.locator("#notice-count")).to_contain_text("Trying again in 1 s")
            words = server.upscale(SMALL).json()["error"]["message"]
            expect(tab.page.locator("#notice-text")).to_contain_text(words[1:])
        tab.wait_for("done")
        expect(tab.page.locator("#notice")).to_be_hidden()


def test_a_key_is_asked_for(visit: Callable[..., Visit], engine: Engine) -> None:
    with running(engine, api_keys=("correct-horse-battery",)) as server:
        tab = visit(server.url, refusals=(401,))
        expect(tab.page.locator("#key")).to_be_focused()
        tab.page.locator("#key").fill("wrong-horse-battery")
        tab.page.keyboard.press("Enter")
        expect(tab.page.locator("#notice-text")).to_contain_text("key is missing or wrong")
        tab.page.locator("#key").fill("correct-horse-battery")
        tab.page.keyboard.press("Enter")
        expect(tab.page.locator("#model")).to_contain_text("micro")
        tab.upscale(SMALL)
        assert tab.page.evaluate("JSON.stringify(localStorage)") == "{}"
        tab.page.reload()  # the tab still knows it
        expect(tab.page.locator("#model")).to_contain_text("micro")


def test_a_server_that_is_gone(visit: Callable[..., Visit], engine: Engine) -> None:
    with running(engine) as server:
        tab = visit(server.url)
        expect(tab.page.locator("#model")).to_contain_text("micro")
    tab.choose("picture.png", SMALL)
    expect(tab.page.locator("#notice-text")).to_contain_text("cannot be reached")
    assert tab.state == "ready"
    tab.complaints.remove("Failed to load resource: net::ERR_CONNECTION_REFUSED")


def test_a_file_over_the_limit_is_not_sent(visit: Callable[..., Visit], engine: Engine) -> None:
    with running(engine, max_body_bytes=64) as server:
        tab = visit(server.url)
        expect(tab.page.locator("#model")).to_contain_text("micro")
        tab.choose("picture.png", SMALL)
        expect(tab.page.locator("#notice-text")).to_contain_text("MiB are allowed")
        assert not any("/v1/upscale" in url for url in tab.requested)
