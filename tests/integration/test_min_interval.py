"""`min_interval` on a real Postgres, with replicas on its WAL and on a log in Valkey."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest

from rowcast import ConfigError, Rowcast
from rowcast.testing.local import LocalStream
from rowcast.testing.valkey import ValkeyServer

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def prices(database: str) -> str:
    """A database with a table."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE prices (symbol text PRIMARY KEY, price int)")
        connection.execute("CREATE TABLE notes (id bigserial PRIMARY KEY)")
        connection.execute("INSERT INTO prices VALUES ('a', 0), ('b', 0)")
    return database


@contextlib.asynccontextmanager
async def running(database: str, log: str, **route: object) -> AsyncIterator[Rowcast]:
    routes = [
        {"table": "prices", "topic": "prices", "min_interval": "1s"} | route,
        {"table": "notes", "topic": "notes"},
    ]
    cast = Rowcast(postgres=database, log=log, auth=SECRET, api={"key": "k"}, route=routes)  # type: ignore[call-arg]
    async with cast.lifespan():
        yield cast


def seen(stream: LocalStream, symbol: str) -> list[int]:
    return [record["price"] for record in stream.records() if record and record.get("symbol") == symbol]


@pytest.mark.parametrize("backend", ["postgres:", "redis:"])
async def test_the_last_comes_on_whichever_replica(prices: str, valkey: ValkeyServer, backend: str) -> None:
    log = valkey.url if backend == "redis:" else backend
    with valkey.client() as client:
        client.flushall()
    async with running(prices, log) as one, running(prices, log) as two:
        stay = LocalStream(one, "ann", ["prices", "notes"])
        go = LocalStream(one, "bob", ["prices", "notes"])
        for stream in (stay, go):
            await stream.ready()
        before: list[LocalStream] = []
        with psycopg.connect(prices, autocommit=True) as connection:
            for number in range(1, 31):
                connection.execute("UPDATE prices SET price = %s", [number])
                connection.execute("INSERT INTO notes DEFAULT VALUES")
                if number % 10 == 0:
                    await go.ready()
                    await go.settled()
                    go.close()
                    before.append(go)
                    go = LocalStream((two, one)[len(before) % 2], "bob", ["prices", "notes"], last_event_id=go.position)
        for stream in (stay, go):
            await stream.until(lambda: seen(stream, "a")[-1:] == [30] == seen(stream, "b")[-1:])  # noqa: B023
        for symbol in "ab":
            whole = seen(stay, symbol)
            assert whole == sorted(set(whole))
            assert len(whole) < 30
            parts = [price for stream in (*before, go) for price in seen(stream, symbol)]
            assert parts == sorted(set(parts))
        notes = [data["record"]["id"] for stream in (*before, go) for data in stream.events() if "id" in data["record"]]
        assert notes == list(range(1, 31))


async def test_a_delete_is_the_last(prices: str) -> None:
    async with running(prices, "postgres:") as cast:
        stream = LocalStream(cast, "ann", ["prices"])
        await stream.ready()
        with psycopg.connect(prices, autocommit=True) as connection:
            for number in range(5):
                connection.execute("UPDATE prices SET price = %s WHERE symbol = 'a'", [number])
            connection.execute("DELETE FROM prices WHERE symbol = 'a'")
            connection.execute("UPDATE prices SET price = 7 WHERE symbol = 'b'")
            connection.execute("UPDATE prices SET price = 8 WHERE symbol = 'b'")
            connection.execute("TRUNCATE prices")
        await stream.until(lambda: stream.events()[-1:] != [] and stream.events()[-1]["action"] == "truncate")
        actions = [(data["action"], (data["record"] or {}).get("symbol")) for data in stream.events()]
        of_a = [action for action, symbol in actions if symbol == "a"]
        assert (of_a[0], of_a[-1]) == ("update", "delete")
        assert seen(stream, "b") == [7, 8]


async def test_a_table_without_a_key_needs_one(prices: str) -> None:
    with psycopg.connect(prices, autocommit=True) as connection:
        connection.execute("ALTER TABLE prices DROP CONSTRAINT prices_pkey")
        connection.execute("ALTER TABLE prices REPLICA IDENTITY FULL")
    with pytest.raises(ConfigError, match="min_interval goes by the row's key"):
        async with running(prices, "postgres:"):
            pass
    async with running(prices, "postgres:", key=["symbol"]) as cast:
        stream = LocalStream(cast, "ann", ["prices"])
        await stream.ready()
        with psycopg.connect(prices, autocommit=True) as connection:
            for number in range(1, 10):
                await asyncio.to_thread(connection.execute, "UPDATE prices SET price = %s WHERE symbol = 'a'", [number])
        await stream.until(lambda: seen(stream, "a")[-1:] == [9])
        assert len(seen(stream, "a")) < 9
