"""The leader of a log on Valkey killed under load, with replicas as processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator

import psycopg
import pytest

from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.testing.server import RowcastServer
from rowcast.testing.stream import OpenStream
from rowcast.testing.valkey import ValkeyServer

SECRET = "0123456789abcdef0123456789abcdef"
KILLS = 3

CONFIG = """
[postgres]
url = "{url}"

[log]
url = "{log}"
redo = "5s"

[auth]
secret = "{secret}"

[[route]]
table = "items"
topic = "t"
columns = ["id"]
"""


@pytest.fixture
def config(database: str) -> Iterator[str]:
    with ValkeyServer() as valkey, psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY, text text)")
        yield CONFIG.format(url=database, log=valkey.url, secret=SECRET)


class Follower:
    """A client that comes back, to any replica, with the position it had."""

    def __init__(self, servers: list[RowcastServer], first: int) -> None:
        self.servers = servers
        self.numbers: list[int] = []
        self.resets = 0
        self.moves = 0
        self._first = first

    async def run(self) -> None:
        token = mint(Config.from_sections({"auth": SECRET}), "ann", topics=["t"])
        position: str | None = None
        while True:
            server = self.servers[(self._first + self.moves) % len(self.servers)]
            async with OpenStream(server.url, token, last_event_id=position) as stream:
                seen = 0
                while not stream.ended or seen < len(stream.blocks):
                    await stream.until(lambda: stream.ended or len(stream.blocks) > seen, timeout=60)  # noqa: B023
                    for block in stream.blocks[seen:]:
                        if block.event == "message" and block.data:
                            self.numbers.append(block.data["record"]["id"])
                        self.resets += block.event == "rowcast.reset"
                    seen = len(stream.blocks)
                position = stream.position or position
            self.moves += 1


async def write(url: str, stop: asyncio.Event) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while not stop.is_set():
            await connection.execute("INSERT INTO items (text) SELECT 'x' FROM generate_series(1, 20)")
            await asyncio.sleep(0.01)


def committed(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM items ORDER BY id")]


async def until(condition: Callable[[], object], timeout: float = 30.0) -> None:
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_killed_leader_loses_and_doubles_nothing(config: str, database: str) -> None:
    servers: list[RowcastServer] = []
    names: dict[str, RowcastServer] = {}
    stop = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []
    takeovers: list[float] = []

    def leader() -> RowcastServer | None:
        with psycopg.connect(database) as connection:
            rows = connection.execute("SELECT application_name FROM pg_stat_replication").fetchall()
        return next((names[row[0].split()[1]] for row in rows if row[0].split()[1] in alive()), None)

    def alive() -> set[str]:
        return {name for name, server in names.items() if server in servers}

    def add() -> RowcastServer:
        name = f"r{len(names)}"
        names[name] = RowcastServer(config, name=name)
        servers.append(names[name])
        return names[name]

    try:
        await asyncio.gather(*(asyncio.to_thread(add().start) for _ in range(3)))
        followers = [Follower(servers, first) for first in range(3)]
        tasks = [asyncio.create_task(follower.run()) for follower in followers]
        writing = asyncio.create_task(write(database, stop))
        await until(lambda: all(len(follower.numbers) > 100 for follower in followers))
        for _ in range(KILLS):
            await until(lambda: leader() is not None)
            victim = leader()
            assert victim is not None
            victim.kill()
            killed = time.monotonic()
            servers.remove(victim)
            await until(lambda: leader() is not None)
            takeovers.append(time.monotonic() - killed)
            seen = [len(follower.numbers) for follower in followers]
            await until(lambda: all(len(f.numbers) > n for f, n in zip(followers, seen, strict=True)))  # noqa: B023
            await asyncio.to_thread(add().start)
        stop.set()
        await writing
        everything = committed(database)
        for follower in followers:
            await until(lambda: follower.numbers[-1:] == everything[-1:])  # noqa: B023  # awaited at once
            assert follower.resets == 0
            assert follower.numbers == everything[everything.index(follower.numbers[0]) :]
        assert max(takeovers) < 2.0, takeovers
        print(f"take-overs: {[round(seconds, 2) for seconds in takeovers]} s, {len(everything)} changes")
    finally:
        stop.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in servers:
            with contextlib.suppress(Exception):
                server.kill()
