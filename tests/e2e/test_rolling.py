"""Replicas behind a real proxy are replaced one after the other, and nobody notices.

ROWCAST_ROLLS (rounds over all replicas), ROWCAST_STREAMS and ROWCAST_PROXY (caddy, nginx) make it larger.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

import httpx
import psycopg

from rowcast.auth.jwt import mint
from rowcast.client import EventStream
from rowcast.config import Config
from rowcast.testing.postgres import free_port
from rowcast.testing.proxies import Caddy, Nginx, Proxy
from rowcast.testing.server import RowcastServer

ROLLS = int(os.environ.get("ROWCAST_ROLLS", "1"))
STREAMS = int(os.environ.get("ROWCAST_STREAMS", "20"))
PROXIES: dict[str, type[Proxy]] = {"caddy": Caddy, "nginx": Nginx}
PROXY = PROXIES[os.environ.get("ROWCAST_PROXY", "caddy")]

SECRET = "0123456789abcdef0123456789abcdef"
CONFIG = """
[server]
drain_delay = "500ms"

[postgres]
url = "{url}"

[auth]
secret = "{secret}"

[[route]]
table = "items"
topic = "t"
"""


class Client:
    """Follows the protocol, and writes down what a browser's EventSource would not survive."""

    def __init__(self, url: str, user: str) -> None:
        token = mint(Config.from_sections({"auth": SECRET}), user, topics=["t"])
        self.stream = EventStream(url, token=token, on_retry=self._on_retry)
        self.numbers: list[int] = []
        self.reasons: list[str] = []
        self.resets = self.byes = 0
        self.longest = 0.0
        self._last = 0.0

    async def run(self) -> None:
        async with contextlib.aclosing(aiter(self.stream)) as events:
            async for event in events:
                if event.event == "message":
                    now = time.monotonic()
                    self.longest = max(self.longest, now - self._last if self._last else 0.0)
                    self._last = now
                    self.numbers.append(event.json()["record"]["id"])
                self.resets += event.event == "rowcast.reset"
                self.byes += event.event == "rowcast.bye"

    def _on_retry(self, reason: str, pause: float) -> None:
        if reason != "the server ended the stream":
            self.reasons.append(reason)


class Caller:
    """Calls the API all the time, and each time by a connection that it may find used before."""

    def __init__(self, url: str) -> None:
        self.statuses: list[int] = []
        self._url = url

    async def run(self) -> None:
        token = mint(Config.from_sections({"auth": SECRET}), "bob")
        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url=self._url, headers=headers, timeout=20) as client:
            while True:
                answer = await client.post("/users/me/channels", json={"channel_type": str(len(self.statuses))})
                self.statuses.append(answer.status_code)
                answer = await client.delete(f"/users/me/channels/{len(self.statuses) - 1}")
                self.statuses.append(answer.status_code)
                await asyncio.sleep(0.01)


async def write(url: str, stop: asyncio.Event) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while not stop.is_set():
            await connection.execute("INSERT INTO items SELECT FROM generate_series(1, 2)")
            await asyncio.sleep(0.02)


async def until(condition: object, timeout: float = 30.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.02)


async def both(client: httpx.AsyncClient, names: set[str]) -> None:
    """Wait until the proxy sends to every replica: a rollout goes on only then."""
    seen: set[str] = set()
    async with asyncio.timeout(30):
        while seen < names:
            answer = await client.get("/readyz")
            seen.add(answer.headers["x-rowcast-replica"])


async def test_a_rolling_restart_loses_and_doubles_nothing(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY)")
    config = CONFIG.format(url=database, secret=SECRET)
    ports = [free_port(), free_port()]
    environment = {"ROWCAST_SERVER_DRAIN_DELAY": ""}  # none: what the file says counts
    servers = {port: RowcastServer(config, name=f"r{port}", environment=environment) for port in ports}
    stop = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []
    with contextlib.ExitStack() as stack:
        for server in servers.values():
            stack.callback(server.kill)
        await asyncio.gather(*(asyncio.to_thread(server.start, port=port) for port, server in servers.items()))
        proxy = stack.enter_context(PROXY([f"127.0.0.1:{port}" for port in ports]))
        clients = [Client(proxy.url, f"u{number}") for number in range(STREAMS)]
        caller = Caller(proxy.url)
        try:
            async with httpx.AsyncClient(base_url=proxy.url) as asking:
                names = {f"r{port}" for port in ports}
                await both(asking, names)
                tasks = [asyncio.create_task(one.run()) for one in (*clients, caller)]
                writing = asyncio.create_task(write(database, stop))
                await until(lambda: all(client.numbers for client in clients))
                for _ in range(ROLLS):
                    for port, server in servers.items():
                        assert await asyncio.to_thread(server.stop) == 0
                        await asyncio.to_thread(server.start, port=port)
                        await both(asking, names)
            stop.set()
            await writing
            with psycopg.connect(database) as connection:
                everything = [row[0] for row in connection.execute("SELECT id FROM items ORDER BY id")]
            await until(lambda: all(client.numbers[-1:] == everything[-1:] for client in clients))
            for client in clients:
                assert client.numbers == everything[everything.index(client.numbers[0]) :]
                assert client.resets == 0
                assert client.reasons == []
            assert sum(client.byes for client in clients) >= STREAMS
            assert not tasks[-1].done()
            assert set(caller.statuses) <= {201, 204}
            longest = max(client.longest for client in clients)
            print(
                f"{STREAMS} streams, {len(everything)} changes, {sum(client.byes for client in clients)} moves, "
                f"longest gap {longest:.2f} s, {len(caller.statuses)} API calls"
            )
        finally:
            stop.set()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
