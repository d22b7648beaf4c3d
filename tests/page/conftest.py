"""Servers and a headless Chromium, one each for all tests of the page."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.engine.test_tiling import engine_of
from tests.serving.conftest import Running, running
from varsr_engine.engine.engine import Engine

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.page.browsing import Visit

pytest.register_assert_rewrite("tests.page.browsing")


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """The browser needs the other cores; threads that wait for each other beside it take many times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A very small one, for what the page does with any model."""
    engine = engine_of(numerics="batch_invariant")
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def mini() -> Iterator[Engine]:
    """The model that comes with the package, as `varsr serve` runs it on a CPU."""
    engine = Engine.from_pretrained("varsr-mini", device="cpu", numerics="batch_invariant")
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def server(engine: Engine) -> Iterator[Running]:
    """One for all tests that change nothing of it."""
    with running(engine) as run:
        yield run


@pytest.fixture(scope="session")
def mini_server(mini: Engine) -> Iterator[Running]:
    with running(mini) as run:
        yield run


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    from tests.page.browsing import find_chromium

    chromium = find_chromium()
    if chromium is None and os.environ.get("CI") == "true":
        pytest.fail("CI=true, and there is no Chromium: apt-get install chromium, or set CHROMIUM to its path")
    if chromium is None:
        pytest.skip("needs Chromium on the path, or CHROMIUM set to where it is")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, server: Running) -> Iterator[Callable[..., Visit]]:
    """visit(url=the server's, refusals=(), **options of Playwright's contexts): a tab. Its end is checked."""
    from tests.page.browsing import Visit

    visits: list[Visit] = []

    def opened(url: str = server.url, **options: Any) -> Visit:
        visits.append(Visit(browser, url, **options))
        return visits[-1]

    yield opened
    for each in visits:
        each.leave()
