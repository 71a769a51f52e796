"""Clients that others made, unmodified: each connects, receives, is cut off, and comes back to what it missed.

A browser's EventSource, the npm packages `eventsource` and `@microsoft/fetch-event-source`, `httpx-sse` for Python,
`curl`, and htmx with its extension for Server-Sent Events, in its example.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import http.server
import json
import runpy
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx_sse
import psycopg
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.testing.live import LiveServer
from rowcast.testing.relay import Relay
from rowcast.testing.server import RowcastServer

ROOT = Path(__file__).parents[2]
NPM = ROOT / "tests" / "npm"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SECRET = "0123456789abcdef0123456789abcdef"
TIMEOUT = 60.0

CONFIG = """
[server]
retry = "100ms"
heartbeat = "1s"
cors_origins = ["*"]

[postgres]
url = "{url}"

[auth]
secret = "{secret}"
query_token = true

[[route]]
table = "items"
topic = "items"
"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),
]


class Stage:
    """A replica behind a connection that can be cut, and its table."""

    def __init__(self, relay: Relay, connection: psycopg.Connection[Any]) -> None:
        self.relay = relay
        self.token = mint(Config.from_sections({"auth": SECRET}), "ann", topics=["items"])
        self.events = f"{relay.url}/events"
        self.with_token = f"{self.events}?token={self.token}"
        self._connection = connection
        self._last = 0

    def insert(self) -> dict[str, Any]:
        self._last += 1
        self._connection.execute("INSERT INTO items VALUES (%s)", [self._last])
        return {"id": self._last}

    def try_out(self, ready: Callable[[int], None], received: Callable[[], list[Any]]) -> None:
        """What every client must do. `ready` waits until a client was told so often that it will get everything;
        `received` gives the records that it got; one that was missed is waited for by asking again."""
        ready(1)
        wanted = [self.insert(), self.insert()]
        _until(lambda: received() == wanted, received)
        self.relay.cut()
        wanted += [self.insert(), self.insert()]
        self.relay.mend()
        ready(2)
        wanted.append(self.insert())
        _until(lambda: received() == wanted, received)


def _until(holds: Callable[[], bool], seen: Callable[[], Any]) -> None:
    """Wait for what another process does."""
    paused = threading.Event()
    for _ in range(round(TIMEOUT / 0.02)):
        if holds():
            return
        paused.wait(0.02)
    raise AssertionError(seen())


@pytest.fixture(scope="module")
def server(shared_database: str) -> Iterator[RowcastServer]:
    with psycopg.connect(shared_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id bigint PRIMARY KEY)")
    with RowcastServer(CONFIG.format(url=shared_database, secret=SECRET)) as server:
        yield server


@pytest.fixture
def stage(server: RowcastServer, shared_database: str) -> Iterator[Stage]:
    with (
        psycopg.connect(shared_database, autocommit=True) as connection,
        Relay(int(server.url.rsplit(":", 1)[1])) as relay,
    ):
        connection.execute("TRUNCATE items")
        yield Stage(relay, connection)


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The npm packages, as locked."""
    with (tmp_path_factory.getbasetemp().parent / "npm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = subprocess.run(
            ["make", "tests/npm/node_modules/.package-lock.json"], cwd=ROOT, capture_output=True, text=True, check=False
        )
    assert made.returncode == 0, made.stderr
    return NPM / "node_modules"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with contextlib.closing(browser.new_page()) as page:
        yield page


class Lines:
    """A program's output, read line by line in a thread."""

    def __init__(self, *command: str) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self.lines.append(line.rstrip("\n"))

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        self._process.kill()
        self._process.wait(30)
        self._reading.join(30)


def records(data: list[str]) -> list[Any]:
    return [json.loads(text)["record"] for text in data]


def test_eventsource_of_a_browser(stage: Stage, page: Page) -> None:
    page.goto(f"{stage.relay.url}/healthz")
    page.evaluate(
        """url => {
            window.ready = 0;
            window.got = [];
            const source = new EventSource(url);
            source.addEventListener("rowcast.ready", () => ready += 1);
            source.onmessage = ({ data }) => got.push(data);
        }""",
        stage.with_token,
    )
    _try_in_page(stage, page)


def _try_in_page(stage: Stage, page: Page) -> None:
    stage.try_out(
        lambda times: page.wait_for_function("times => ready >= times", arg=times, timeout=TIMEOUT * 1000) and None,
        lambda: records(page.evaluate("got")),
    )


class _Files(http.server.SimpleHTTPRequestHandler):
    """Static files; imports without an ending are found, as bundlers do it."""

    def translate_path(self, path: str) -> str:
        found = super().translate_path(path)
        return found if Path(found).is_file() else f"{found}.js"

    def do_GET(self) -> None:
        if self.path == "/":
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


def test_fetch_event_source(stage: Stage, page: Page, packages: Path) -> None:
    handler = functools.partial(_Files, directory=str(packages))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        thread = threading.Thread(target=files.serve_forever)
        thread.start()
        page.goto(f"http://127.0.0.1:{files.server_address[1]}/")
        page.evaluate(
            """async ([url, token]) => {
                window.ready = 0;
                window.got = [];
                const { fetchEventSource } = await import("/@microsoft/fetch-event-source/lib/esm/index.js");
                fetchEventSource(url, {
                    headers: { authorization: `Bearer ${token}` },
                    openWhenHidden: true,
                    onmessage({ event, data }) {
                        if (event === "rowcast.ready") ready += 1;
                        else if (!event && data) got.push(data);
                    },
                    onclose() { throw new Error("again"); },
                    onerror() { return 100; },
                });
            }""",
            [stage.events, stage.token],
        )
        _try_in_page(stage, page)
        files.shutdown()
        thread.join()


def test_eventsource_of_npm(stage: Stage, packages: Path) -> None:
    with contextlib.closing(Lines("node", str(NPM / "eventsource.mjs"), stage.with_token)) as client:

        def events(kind: str) -> list[str]:
            return [event["data"] for line in list(client.lines) if (event := json.loads(line))["type"] == kind]

        stage.try_out(
            lambda times: _until(lambda: len(events("rowcast.ready")) >= times, lambda: client.lines),
            lambda: records(events("message")),
        )
        assert not events("rowcast.reset")


def test_httpx_sse(stage: Stage) -> None:
    ready, got, last = [], [], [""]
    closing = threading.Event()

    def follow() -> None:
        """As its documentation shows it: the loop around it is the user's."""
        while not closing.is_set():
            headers = {"authorization": f"Bearer {stage.token}"} | ({"last-event-id": last[0]} if last[0] else {})
            with (
                contextlib.suppress(httpx.TransportError),
                httpx.Client(timeout=TIMEOUT) as client,
                httpx_sse.connect_sse(client, "GET", stage.events, headers=headers) as source,
            ):
                for event in source.iter_sse():
                    last[0] = event.id or last[0]
                    if event.event == "rowcast.ready":
                        ready.append(event.id)
                    elif event.data:
                        got.append(event.data)
            closing.wait(0.02)

    following = threading.Thread(target=follow)
    following.start()
    try:
        stage.try_out(lambda times: _until(lambda: len(ready) >= times, lambda: ready), lambda: records(got))
    finally:
        closing.set()
        stage.relay.cut()
        following.join(TIMEOUT)


def test_curl(stage: Stage) -> None:
    """It resumes as its user does: by hand, with the last id."""
    runs: list[Lines] = []

    def begin(*more: str) -> None:
        runs.append(Lines("curl", "-sN", "-H", f"Authorization: Bearer {stage.token}", *more, stage.events))

    def ready(times: int) -> None:
        if times > len(runs):
            _until(lambda: runs[-1].ended, lambda: runs[-1].lines)
            # Of blocks that came whole: they end with a blank line.
            last = len(runs[-1].lines) - runs[-1].lines[::-1].index("")
            whole = runs[-1].lines[:last]
            ids = [line.removeprefix("id: ") for line in whole if line.startswith("id: ")]
            begin("-H", f"Last-Event-ID: {ids[-1]}")
        _until(lambda: "event: rowcast.ready" in list(runs[-1].lines), lambda: runs[-1].lines)

    def received() -> list[Any]:
        data = [line.removeprefix("data: ") for run in runs for line in list(run.lines) if line.startswith("data: ")]
        return [event["record"] for text in data if "record" in (event := json.loads(text))]

    begin()
    try:
        stage.try_out(ready, received)
    finally:
        for run in runs:
            run.close()


@pytest.fixture
def htmx(shared_database: str, packages: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example's address."""
    monkeypatch.setenv("DATABASE_URL", shared_database)
    monkeypatch.setenv("NODE_MODULES", str(packages))
    example = runpy.run_path(str(ROOT / "examples" / "htmx" / "app.py"))
    with LiveServer(example["cast"], example["app"]) as server:
        yield server.url


def test_htmx(htmx: str, browser: Browser, shared_database: str) -> None:
    with psycopg.connect(shared_database, autocommit=True) as connection, Relay(int(htmx.rsplit(":", 1)[1])) as relay:
        pages = [browser.new_page() for _ in range(2)]

        def shown(*texts: str) -> None:
            for page in pages:
                page.wait_for_function(
                    "wanted => [...document.querySelectorAll('li')].map(li => li.innerText).join() === wanted.join()",
                    arg=texts,
                    timeout=TIMEOUT * 1000,
                )

        for page in pages:
            page.goto(relay.url)
        pages[0].fill("input", "from a <page>")
        pages[0].click("button")
        shown("from a <page>")
        connection.execute("INSERT INTO tasks (text) VALUES ('from elsewhere')")
        shown("from a <page>", "from elsewhere")
        relay.cut()
        connection.execute("INSERT INTO tasks (text) VALUES ('while it was away')")
        relay.mend()
        shown("from a <page>", "from elsewhere", "while it was away")
        for page in pages:
            page.close()
