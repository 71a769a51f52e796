"""The documents can be used by everybody, as far as axe can tell, in light and dark, wide and on a phone."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from tools.accessibility import findings_in_light_and_dark

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# One for each kind of thing that stands on a page.
PAGES = {
    "index.html": 1280,
    "tutorial/index.html": 1280,
    "reference/configuration.html": 390,
    "reference/python/rowcast.html": 1280,
    "explanation/exact-subscriptions.html": 390,
}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.xdist_group("docs"),
    pytest.mark.timeout(600),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def url(site: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


def test_nothing_grave_is_found(page: Page, url: str) -> None:
    for name, width in PAGES.items():
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(f"{url}/{name}")
        assert findings_in_light_and_dark(page) == [], name
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} is wider than the screen"
