"""Replicas behind a real proxy are replaced one after the other, and nobody notices: not clients that follow the
protocol, not Chromium's own EventSource, not those who call the API.

ROWCAST_ROLLS (rounds over all replicas), ROWCAST_REPLICAS and ROWCAST_STREAMS make it larger; `python -m benchmarks
rolling` is the same with thousands of streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Callable

import httpx
import psycopg
import pytest
from playwright.async_api import Page, async_playwright

from rowcast.auth.jwt import mint
from rowcast.client import EventStream
from rowcast.config import Config
from rowcast.testing.proxies import Caddy, Nginx, Proxy
from rowcast.testing.rollout import Caller, Deployment

ROLLS = int(os.environ.get("ROWCAST_ROLLS", "1"))
REPLICAS = int(os.environ.get("ROWCAST_REPLICAS", "0"))
STREAMS = int(os.environ.get("ROWCAST_STREAMS", "10"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

SECRET = "0123456789abcdef0123456789abcdef"
CONFIG = """
[server]
drain_delay = "500ms"

[postgres]
url = "{url}"

[auth]
secret = "{secret}"
query_token = true

[[route]]
table = "items"
topic = "t"
"""
PAGE = """<!doctype html><title>nothing but EventSource</title><script>
window.numbers = []; window.states = []; window.opened = 0; window.resets = 0; window.byes = 0;
const source = new EventSource("/events" + location.search);
source.onopen = () => opened++;
source.onerror = () => states.push(source.readyState);
source.onmessage = event => numbers.push(JSON.parse(event.data).record.id);
source.addEventListener("rowcast.reset", () => resets++);
source.addEventListener("rowcast.bye", () => byes++);
</script>"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.xdist_group("browser"),
]


def token(user: str) -> str:
    return mint(Config.from_sections({"auth": SECRET}), user, topics=["t"])


class Client:
    """Follows the protocol, and writes down what a browser's EventSource would not survive."""

    def __init__(self, url: str, user: str) -> None:
        self.stream = EventStream(url, token=token(user), on_retry=self._on_retry)
        self.numbers: list[int] = []
        self.reasons: list[str] = []
        self.resets = self.byes = 0

    async def run(self) -> None:
        async with contextlib.aclosing(aiter(self.stream)) as events:
            async for event in events:
                if event.event == "message":
                    self.numbers.append(event.json()["record"]["id"])
                self.resets += event.event == "rowcast.reset"
                self.byes += event.event == "rowcast.bye"

    def _on_retry(self, reason: str, pause: float) -> None:
        if reason != "the server ended the stream":
            self.reasons.append(reason)


async def write(url: str, stop: asyncio.Event) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while not stop.is_set():
            await connection.execute("INSERT INTO items SELECT FROM generate_series(1, 2)")
            await asyncio.sleep(0.05)


async def until(condition: Callable[[], object], timeout: float = 120.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def browser_page(url: str) -> AsyncIterator[Page]:
    """A page that the proxy's own origin seems to serve, with an EventSource of the browser's."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page = await browser.new_page()
            await page.route("**/page?*", lambda route: route.fulfill(body=PAGE, content_type="text/html"))
            await page.goto(f"{url}/page?token={token('browser')}")
            yield page
        finally:
            await browser.close()


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("kind", "replicas"), [(Caddy, 2), (Nginx, 1)], ids=["caddy", "nginx"])
async def test_a_rolling_restart_loses_and_doubles_nothing(kind: type[Proxy], replicas: int, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY)")
    stop = asyncio.Event()
    following: list[asyncio.Task[None]] = []
    environment = {"ROWCAST_SERVER_DRAIN_DELAY": ""}  # none: what the file says counts
    config = CONFIG.format(url=database, secret=SECRET)
    async with Deployment(config, REPLICAS or replicas, environment=environment) as deployment:
        with kind(deployment.upstreams) as proxy:
            caller = Caller(proxy.url, token("bob"))
            clients = [Client(proxy.url, f"u{number}") for number in range(STREAMS)]
            async with httpx.AsyncClient(base_url=proxy.url) as asking, browser_page(proxy.url) as page:
                await deployment.sends_to_all(asking)
                following = [asyncio.create_task(client.run()) for client in clients]
                writing = asyncio.create_task(write(database, stop))
                try:
                    await until(lambda: all(client.numbers for client in clients))
                    await page.wait_for_function("numbers.length", timeout=120_000)
                    async with caller.calling():
                        for _ in range(ROLLS):
                            await deployment.roll(lambda: deployment.sends_to_all(asking))
                    stop.set()
                    await writing
                    with psycopg.connect(database) as connection:
                        everything = [row[0] for row in connection.execute("SELECT id FROM items ORDER BY id")]
                    await until(lambda: all(client.numbers[-1:] == everything[-1:] for client in clients))
                    await page.wait_for_function(f"numbers.at(-1) === {everything[-1]}", timeout=120_000)
                    found = await page.evaluate("({numbers, states, opened, resets, byes})")
                finally:
                    stop.set()
                    for task in (*following, writing):
                        task.cancel()
                    await asyncio.gather(*following, writing, return_exceptions=True)
    for client in clients:
        assert client.numbers == everything[everything.index(client.numbers[0]) :]
        assert client.resets == 0
        assert client.reasons == []
    # Each replica of the beginning was ended, and so each stream at least once.
    assert all(client.byes >= ROLLS for client in clients)
    assert set(caller.statuses) <= {201, 204}
    assert found["numbers"] == everything[everything.index(found["numbers"][0]) :]
    assert found["byes"] >= ROLLS
    assert found["opened"] > found["byes"]
    # 0 is CONNECTING: it comes back by itself. 2 is CLOSED: it never would.
    assert set(found["states"]) == {0}
    assert found["resets"] == 0
