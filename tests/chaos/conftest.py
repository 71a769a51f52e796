"""What the drills share: Redis servers of two makes, a table with a steady writer, clients that come back.

A drill is short by default, and long by numbers in the environment (see docs/explanation/guarantees.md):

ROWCAST_ROUNDS   switches of a subscription, for each server (12)
ROWCAST_KILLS    leaders killed (2)
ROWCAST_OUTAGE   seconds for which Redis is away or its connections are killed (1)
ROWCAST_HANGS    leaders stopped and continued (1)
ROWCAST_RATE     changes a second that are written meanwhile (400)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import psycopg
import pytest

from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.testing.follower import Follower
from rowcast.testing.replicas import Replicas
from rowcast.testing.stream import Block
from rowcast.testing.valkey import ValkeyServer

SECRET = "0123456789abcdef0123456789abcdef"
KEY = "api-key"

CONFIG = """
[postgres]
url = "{url}"

[log]
url = "{log}"
retention = "60s"

[auth]
secret = "{secret}"

[api]
key = "{key}"

[[route]]
table = "items"
topic = "items:{{kind}}"
columns = ["id", "kind"]

[[subscription]]
table = "rowcast_channels"
user = "{{user_id}}"
when = "{{enabled}}"
topics = ["items:{{config.kinds[*]}}"]
"""


def number(name: str, default: float) -> float:
    return float(os.environ.get(name, default))


class Drill:
    """A database with a table of items, a Redis, and what the replicas on them are told."""

    def __init__(self, database: str, redis: ValkeyServer) -> None:
        self.database = database
        self.redis = redis
        self.text = CONFIG.format(url=database, log=redis.url, secret=SECRET, key=KEY)
        self.written = 0

    def number(self, name: str, default: float) -> float:
        return number(name, default)

    def replicas(self, count: int, extra: str = "") -> Replicas:
        return Replicas(self.text + extra, self.database, count)

    def token(self, user: str, topics: list[str] | None = None) -> str:
        return mint(Config.from_sections({"auth": SECRET}), user, topics=topics, ttl=7200)

    def client(self, url: str, user: str | None = None) -> httpx.AsyncClient:
        """A user's, or the application's with the API key."""
        return httpx.AsyncClient(
            base_url=url, headers={"authorization": f"Bearer {KEY if user is None else self.token(user)}"}, timeout=20
        )

    @contextlib.asynccontextmanager
    async def writing(self, rate: float | None = None) -> AsyncIterator[None]:
        """Two writers, whose transactions of different sizes mingle, for the time of the block; `rate` a second."""
        rate = rate or number("ROWCAST_RATE", 400)
        stop = asyncio.Event()
        writers = [asyncio.create_task(self._write(rate / 2, stop)) for _ in range(2)]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*writers)

    async def _write(self, rate: float, stop: asyncio.Event) -> None:
        clock = asyncio.get_running_loop().time
        async with await psycopg.AsyncConnection.connect(self.database, autocommit=True) as connection:
            due = clock()
            while not stop.is_set():
                count = random.randrange(1, 40)
                await connection.execute(
                    "INSERT INTO items (kind) SELECT 'x' FROM generate_series(1, %s)", [count], prepare=True
                )
                self.written += count
                due += count / rate
                if due < clock() - 1:
                    due = clock()  # it was held up: what is missing is not made up for in a burst
                await asyncio.sleep(max(0.0, due - clock()))

    async def told(self, replicas: Replicas, clients: list[Client]) -> str:
        """Everything that a person needs who looks for the reason of a failure."""
        with psycopg.connect(self.database) as connection, self.redis.client() as redis:
            slots = connection.execute(
                "SELECT slot_name, active, confirmed_flush_lsn, pg_current_wal_insert_lsn() FROM pg_replication_slots"
            )
            lines = [
                *(f"slot: {slot}" for slot in slots.fetchall()),
                f"log: {redis.hgetall('{rowcast:log}:head')} {redis.xlen('rowcast:log')} items",
            ]
        for client in clients:
            lines += [f"{client.taken} came to a client; resets: {client.named('reset')}", *client.lately]
        for server in replicas.alive:
            async with self.client(server.url) as asked:
                try:
                    ready = (await asked.get("/readyz")).text
                except httpx.HTTPError as error:
                    ready = repr(error)
            lines += [f"{server.url}: {ready}", server.log[-3000:]]
        return "\n".join(lines)

    def committed(self) -> array[int]:
        """The ids of all items in commit order, as another decoder of the WAL has it."""
        ids: array[int] = array("q")
        with psycopg.connect(self.database) as connection, connection.cursor(name="oracle") as cursor:
            cursor.itersize = 10_000
            cursor.execute(
                "SELECT split_part(split_part(data, 'id[bigint]:', 2), ' ', 1)::bigint"
                " FROM pg_logical_slot_get_changes('oracle', NULL, NULL) WHERE data LIKE 'table public.items: INSERT:%'"
            )
            ids.extend(row[0] for row in cursor)
        return ids


class Client:
    """A client that comes back, and keeps the ids of the items that came. An async context manager.

    It begins with the replica numbered `first`, and stays on it (`sticky`) or goes to the next one when a connection
    ends.
    """

    def __init__(self, replicas: Replicas, token: str, *, first: int = 0, sticky: bool = False) -> None:
        self.ids: array[int] = array("q")
        self.published: list[Any] = []
        self.service: list[Block] = []
        """Every event of the service (`rowcast.…`), in order."""
        self._replicas = replicas
        self._next = first
        self._sticky = sticky
        self._changed = asyncio.Event()
        self._follower = Follower(self._pick, token, self._heed, buffer=1 << 16)
        self._task: asyncio.Task[None] | None = None

    @property
    def connections(self) -> int:
        return self._follower.connections

    @property
    def lately(self) -> list[str]:
        return list(self._follower.lately)

    @property
    def taken(self) -> int:
        return len(self.ids)

    def named(self, name: str) -> list[Any]:
        """The data of all events of the service with a name."""
        return [block.data for block in self.service if block.event == f"rowcast.{name}"]

    async def until(self, holds: Callable[[], object], *, timeout: float = 30.0) -> None:
        """Wait until a condition of what has come holds. Raises what ended the client, if anything did."""
        async with asyncio.timeout(timeout):
            while not holds():
                if self._task is not None and self._task.done():
                    self._task.result()
                self._changed.clear()
                await self._changed.wait()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._follower.run())
        self._task.add_done_callback(lambda _: self._changed.set())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _pick(self) -> str:
        urls = self._replicas.urls
        url = urls[self._next % len(urls)]
        if not self._sticky:
            self._next += 1
        return url

    async def _heed(self, block: Block) -> None:
        if block.event.startswith("rowcast."):
            self.service.append(block)
        elif "record" in block.data:
            self.ids.append(block.data["record"]["id"])
        else:
            self.published.append(block.data["data"])
        self._changed.set()


@pytest.fixture(scope="session")
def follow() -> type[Client]:
    return Client


@pytest.fixture(params=["valkey", "redis"])
def redis_server(request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    """Valkey 8 of the wheel, and the Redis 7 that Debian has."""
    found = shutil.which("redis-server")
    assert found is not None, "redis-server is missing: install it with apt"
    with ValkeyServer(program=Path(found) if request.param == "redis" else None) as server:
        yield server


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="session")
def make_drill() -> Callable[[str, ValkeyServer], Drill]:
    def make(database: str, redis: ValkeyServer) -> Drill:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY, kind text NOT NULL)")
            connection.execute("SELECT pg_create_logical_replication_slot('oracle', 'test_decoding')")
        return Drill(database, redis)

    return make


@pytest.fixture
def drill(make_drill: Callable[[str, ValkeyServer], Drill], database: str, valkey: ValkeyServer) -> Drill:
    return make_drill(database, valkey)
