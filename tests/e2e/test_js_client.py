"""The browser client in a real Chromium, against real replicas; and its own tests, by Node."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import psycopg
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.testing.postgres import free_port
from rowcast.testing.server import RowcastServer

CLIENT = Path(__file__).parents[2] / "clients" / "js"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECRET = "0123456789abcdef0123456789abcdef"

CONFIG = """
[server]
cors_origins = ["{origin}"]
retry = "100ms"
heartbeat = "1s"
max_streams_per_user = 50

[postgres]
url = "{url}"

[auth]
secret = "{secret}"

[[route]]
table = "items"
topic = "items"
snapshot = true
"""

PAGE = b"""<!doctype html><title>client</title><script type="module">
import { connect } from "/src/index.js";
const query = new URLSearchParams(location.search);
const tokens = JSON.parse(query.get("tokens"));
window.asked = 0;
window.live = connect(query.get("url"), {
  shared: query.has("shared"), snapshot: true, credentials: "omit",
  token: () => tokens[Math.min(asked++, tokens.length - 1)],
});
window.events = [];
live.on("*", ({ event, data }) => events.push([event, data]));
window.states = [];
live.on("state", ({ state, detail }) => states.push([state, detail]));
window.items = live.rows({ topic: "items" });
</script>"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.xdist_group("browser"),
]


class _Files(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/page"):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(PAGE)
        else:
            super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    """Where the page and the client's files are."""
    handler = functools.partial(_Files, directory=str(CLIENT))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with contextlib.closing(browser.new_context()) as context:
        yield context


class Stage:
    """A replica with a table, and pages that show it."""

    def __init__(self, database: str, origin: str, server: RowcastServer, context: BrowserContext) -> None:
        self.database = database
        self.origin = origin
        self.server = server
        self.context = context

    def token(self, ttl: float = 3600.0) -> str:
        return mint(Config.from_sections({"auth": SECRET}), "ann", topics=["items"], ttl=ttl)

    def open(self, *, shared: bool = False, tokens: list[str] | None = None) -> Page:
        page = self.context.new_page()
        query = {"url": self.server.url, "tokens": json.dumps(tokens or [self.token()])}
        page.goto(f"{self.origin}/page?{urlencode(query)}" + ("&shared" if shared else ""))
        return page

    def write(self, statement: str) -> None:
        with psycopg.connect(self.database, autocommit=True) as connection:
            connection.execute(statement.encode())

    def rows(self) -> list[dict[str, Any]]:
        with psycopg.connect(self.database) as connection:
            rows = connection.execute("SELECT id, text FROM items ORDER BY id").fetchall()
        return [{"id": number, "text": text} for number, text in rows]

    def shown(self, page: Page) -> None:
        """Wait until the page has what the table has."""
        page.wait_for_function(
            "wanted => JSON.stringify(items.get().toSorted((a, b) => a.id - b.id)) === JSON.stringify(wanted)",
            arg=self.rows(),
            timeout=20_000,
        )

    def streams(self) -> int:
        text = httpx.get(f"{self.server.url}/metrics").text
        return next(int(float(line.split()[1])) for line in text.splitlines() if line.startswith("rowcast_streams "))


@pytest.fixture
def stage(database: str, origin: str, context: BrowserContext) -> Iterator[Stage]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id bigint PRIMARY KEY, text text)")
        connection.execute("INSERT INTO items SELECT n, 'before' FROM generate_series(1, 3) n")
    text = CONFIG.format(origin=origin, url=database, secret=SECRET)
    server = RowcastServer(text)
    server.start(port=free_port())
    yield Stage(database, origin, server, context)
    server.stop()


def test_rows_are_what_the_table_has(stage: Stage) -> None:
    page = stage.open()
    stage.shown(page)
    stage.write("INSERT INTO items VALUES (4, 'after'); UPDATE items SET text = 'x' WHERE id = 1")
    stage.write("DELETE FROM items WHERE id = 2")
    stage.shown(page)
    stage.write("TRUNCATE items")
    stage.shown(page)


def test_a_killed_server_costs_nothing(stage: Stage) -> None:
    page = stage.open()
    stage.shown(page)
    stage.server.kill()
    stage.write("INSERT INTO items VALUES (4, 'while it was away'); DELETE FROM items WHERE id = 1")
    stage.server.start(port=int(stage.server.url.rsplit(":", 1)[1]))
    stage.shown(page)
    names = page.evaluate("events.map(([event]) => event)")
    assert "rowcast.reset" not in names
    assert names.count("rowcast.snapshot") == 1, "resumed: no need of the rows again"


def test_a_token_that_expires_is_replaced_without_a_gap(stage: Stage) -> None:
    page = stage.open(tokens=[stage.token(ttl=6.0), stage.token()])
    stage.shown(page)
    page.wait_for_function("events.some(([event, data]) => data.reason === 'token_expired')", timeout=20_000)
    stage.write("INSERT INTO items VALUES (4, 'meanwhile')")
    stage.shown(page)
    assert page.evaluate("asked") >= 2


def test_a_page_that_slept_comes_back_to_what_it_missed(stage: Stage) -> None:
    page = stage.open()
    stage.shown(page)
    page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    page.wait_for_function("states.at(-1)[1] === 'paused'")
    stage.write("UPDATE items SET text = 'while it slept'")
    page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    stage.shown(page)


def test_a_lost_network_is_waited_for(stage: Stage) -> None:
    page = stage.open()
    stage.shown(page)
    stage.context.set_offline(True)
    page.wait_for_function("states.at(-1)[1] === 'paused'")
    stage.write("INSERT INTO items VALUES (5, 'in the tunnel')")
    stage.context.set_offline(False)
    stage.shown(page)


def test_ten_tabs_share_one_connection_and_survive_their_leader(stage: Stage) -> None:
    pages = [stage.open(shared=True) for _ in range(10)]
    for page in pages:
        stage.shown(page)
    assert stage.streams() == 1
    stage.write("INSERT INTO items VALUES (6, 'to all')")
    for page in pages:
        stage.shown(page)
    while len(pages) > 7:
        leader = next(page for page in pages if page.evaluate("Boolean(live.connection)"))
        pages.remove(leader)
        leader.close()
        stage.write(f"INSERT INTO items VALUES ({100 + len(pages)}, 'after a leader left')")
        for page in pages:
            stage.shown(page)
    assert stage.streams() == 1
    for page in pages:
        ids = page.evaluate("events.filter(([event]) => event === 'message').map(([, data]) => data.record.id)")
        assert ids == [6, 109, 108, 107], "each once, in order"
        assert "rowcast.reset" not in page.evaluate("events.map(([event]) => event)")
    late = stage.open(shared=True)
    stage.shown(late)
    assert stage.streams() == 1


def test_refused_for_good_it_stops_and_says_why(stage: Stage) -> None:
    page = stage.open(tokens=["no token"])
    page.wait_for_function("states.some(([state]) => state === 'closed')")
    assert "401" in page.evaluate("states.at(-1)[1]")


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_its_own_tests_pass_in_node() -> None:
    tests = sorted(str(file) for file in (CLIENT / "test").glob("*.test.js"))
    result = subprocess.run(["node", "--test", *tests], capture_output=True, text=True, check=False, cwd=CLIENT)
    assert result.returncode == 0, result.stdout
