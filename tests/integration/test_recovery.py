"""The readers come back by themselves: nothing lost, nothing doubled, or one reset."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import psycopg
import pytest

from rowcast import Rowcast
from rowcast.core.grants import Grant
from rowcast.core.stream import Stream
from rowcast.testing.postgres import PostgresServer

SECRET = "0123456789abcdef0123456789abcdef"


class Reader:
    """A client in this process: everything that its stream gave, as it came."""

    def __init__(self, cast: Rowcast, user: str = "ann", topics: tuple[str, ...] = ("t",)) -> None:
        self.blocks: list[str] = []
        self.numbers: list[int] = []
        self.arrived = asyncio.Event()
        self._open: list[Stream] = []
        self._open.append(cast.hub.connect(Grant(user, frozenset(topics)), self.read))
        self.read()

    def read(self) -> None:
        for stream in self._open:
            text = stream.take().decode()
            self.blocks.extend(block for block in text.split("\n\n") if block)
            self.numbers.extend(int(number) for number in re.findall(r'"record":{"id":(\d+)', text))
        self.arrived.set()

    @property
    def events(self) -> list[str]:
        return [found[1] for block in self.blocks if (found := re.search(r"event: (\S+)", block))]

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not holds():
                self.arrived.clear()
                await self.arrived.wait()


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of the test's own, to be broken."""
    with PostgresServer() as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY, text text)")
        yield server


@contextlib.asynccontextmanager
async def running(url: str, **sections: object) -> AsyncIterator[Rowcast]:
    route = [{"table": "items", "topic": "t", "columns": ["id"]}]
    cast = Rowcast(postgres=url, auth=SECRET, route=route, **sections)  # type: ignore[arg-type]
    async with cast.lifespan():
        yield cast


class Writer:
    """Inserts rows one by one, for as long as the block lasts; what a broken connection leaves open is
    settled afterwards by asking the table."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.stop = asyncio.Event()

    async def run(self) -> None:
        while not self.stop.is_set():
            with contextlib.suppress(psycopg.OperationalError):
                async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
                    while not self.stop.is_set():
                        await connection.execute("INSERT INTO items (text) SELECT 'x' FROM generate_series(1, %s)",
                                                 [random.randrange(1, 5)])  # fmt: skip
            await asyncio.sleep(0)

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.run())
        try:
            yield
        finally:
            self.stop.set()
            await task


def committed(url: str) -> list[int]:
    """All rows in commit order, which for one writer is that of the ids."""
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM items ORDER BY id")]


async def break_under_load(
    server: PostgresServer, cast: Rowcast, times: int, break_it: Callable[[], Awaitable[None]]
) -> Reader:
    """Write, break and wait for the stream to move on again, so many times; then compare."""
    reader = Reader(cast)
    await reader.until(lambda: "rowcast.ready" in reader.events)
    async with Writer(server.url()).writing():
        for _ in range(times):
            sessions, seen = cast.log.sessions, len(reader.numbers)  # type: ignore[attr-defined]
            await break_it()
            await reader.until(
                lambda: cast.log.sessions > sessions and len(reader.numbers) > seen + 3  # type: ignore[attr-defined]  # noqa: B023
            )
    await cast.hub.passed(await cast.log.head())
    assert reader.numbers == committed(server.url())
    return reader


async def test_replication_connections_killed_100_times(server: PostgresServer) -> None:
    async with (
        running(server.url()) as cast,
        await psycopg.AsyncConnection.connect(server.url(), autocommit=True) as admin,
    ):

        async def kill() -> None:
            await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")

        reader = await break_under_load(server, cast, 100, kill)
        assert reader.events == ["rowcast.ready"]
        assert cast.log.sessions > 100  # type: ignore[attr-defined]  # it is a PostgresLog


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
async def test_postgres_restarted_under_load(server: PostgresServer, how: signal.Signals) -> None:
    async with running(server.url()) as cast:

        async def restart() -> None:
            if how is signal.SIGKILL:
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
            else:
                await asyncio.to_thread(server.restart, how)

        reader = await break_under_load(server, cast, 4, restart)
        assert reader.events == ["rowcast.ready"]


async def test_an_anchor_dropped_by_hand_is_a_reset(server: PostgresServer) -> None:
    async with running(server.url()) as cast:
        assert cast.replica.guard is not None
        reader = Reader(cast)
        await reader.until(lambda: "rowcast.ready" in reader.events)
        before = cast.hub.epoch
        with psycopg.connect(server.url(), autocommit=True) as admin:
            admin.execute("SELECT pg_drop_replication_slot('rowcast')")
            await cast.replica.guard.round(0.0)
            await reader.until(lambda: "rowcast.reset" in reader.events)
            assert cast.hub.epoch != before
            admin.execute("INSERT INTO items (text) VALUES ('after')")
        await reader.until(lambda: reader.numbers == committed(server.url()))
        assert reader.events == ["rowcast.ready", "rowcast.reset"]
        old = Reader(cast, "bob")
        await old.until(lambda: "rowcast.ready" in old.events)


async def test_an_invalidated_anchor_is_made_anew() -> None:
    with PostgresServer(settings={"max_slot_wal_keep_size": "1MB", "max_wal_size": "32MB", "min_wal_size": "32MB",
                                  "wal_keep_size": "0"}) as server:  # fmt: skip
        with psycopg.connect(server.url(), autocommit=True) as admin:
            admin.execute("CREATE TABLE items (id bigserial PRIMARY KEY, text text)")
            async with running(server.url()) as cast:
                assert cast.replica.guard is not None
                reader = Reader(cast)
                await reader.until(lambda: "rowcast.ready" in reader.events)
                before = cast.hub.epoch
                for _ in range(4):
                    admin.execute("INSERT INTO items (text) SELECT repeat('x', 1000) FROM generate_series(1, 20000)")
                    admin.execute("SELECT pg_switch_wal()")
                    admin.execute("CHECKPOINT")
                status = admin.execute(
                    "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'rowcast'"
                ).fetchone()
                assert status == ("lost",)
                await cast.replica.guard.round(0.0)
                await reader.until(lambda: "rowcast.reset" in reader.events)
                assert cast.hub.epoch != before
                admin.execute("TRUNCATE items")
                admin.execute("INSERT INTO items (text) VALUES ('after')")
                last = committed(server.url())[-1]
                await reader.until(lambda: reader.numbers[-1:] == [last])


async def test_a_replica_that_starts_has_a_warm_ring(server: PostgresServer) -> None:
    """A stream that comes over from a dead replica finds what it missed, also from before the new one's start."""
    async with running(server.url()) as cast:
        reader = Reader(cast)
        await reader.until(lambda: "rowcast.ready" in reader.events)
        with psycopg.connect(server.url(), autocommit=True) as admin:
            admin.execute("INSERT INTO items (text) VALUES ('1')")
            await reader.until(lambda: reader.numbers == [1])
            admin.execute("INSERT INTO items (text) VALUES ('2'), ('3')")
            await reader.until(lambda: reader.numbers == [1, 2, 3])
        position = re.findall(r"id: (\S+)", "\n".join(reader.blocks))[1]
    from rowcast.core.position import parse_position

    async with running(server.url()) as other:
        opened: list[Stream] = []
        opened.append(other.hub.connect(Grant("ann", frozenset({"t"})), lambda: None, cursor=parse_position(position)))
        text = opened[0].take().decode()
        assert "rowcast.reset" not in text
        assert re.findall(r'"record":{"id":(\d+)', text) == ["2", "3"]


async def test_a_large_transaction_comes_in_batches_and_other_streams_start_meanwhile(
    server: PostgresServer,
) -> None:
    async with running(server.url(), log={"ring_bytes": "4MB"}) as cast:
        largest = 0
        handle = cast.hub.handle

        def measure(batch: object) -> None:
            nonlocal largest
            largest = max(largest, len(batch.entries))  # type: ignore[attr-defined]
            handle(batch)  # type: ignore[arg-type]

        cast.hub.handle = measure  # type: ignore[method-assign]
        with psycopg.connect(server.url(), autocommit=True) as admin:
            admin.execute("INSERT INTO items (text) SELECT 'x' FROM generate_series(1, 100000)")
        reader = Reader(cast)
        await cast.hub.passed(await cast.log.head())
        reader.read()
        numbers = reader.numbers
        assert numbers == list(range(numbers[0], 100_001)) if numbers else True
        assert cast.hub.entries["data"] == 100_000
        assert 0 < largest <= 512
        assert cast.hub.ring.bytes <= 4 << 20


async def test_publish_sql_is_delivered_exactly_if_the_transaction_commits(server: PostgresServer) -> None:
    async with running(server.url()) as cast:
        reader = Reader(cast)
        await reader.until(lambda: "rowcast.ready" in reader.events)
        statement = cast.publish_sql("t", {"percent": "100%s %(x)s :name", "quote": "it's \\ \"\u2028"})
        with psycopg.connect(server.url()) as connection:
            connection.execute(statement.encode())
            connection.rollback()
            connection.execute(cast.publish_sql("t", {"n": 2}).encode(), [])
            connection.execute(statement.encode())
            connection.commit()
        await reader.until(lambda: sum('"data":' in block for block in reader.blocks) == 2)
        data = [block.split("data: ")[1] for block in reader.blocks if '"data":' in block]
        assert data[0] == '{"topic":"t","data":{"n":2}}'
        assert "100%s %(x)s :name" in data[1]


async def test_a_forged_message_is_ignored(server: PostgresServer) -> None:
    async with running(server.url()) as cast:
        reader = Reader(cast)
        await reader.until(lambda: "rowcast.ready" in reader.events)
        with psycopg.connect(server.url(), autocommit=True) as admin:
            for content in ("", "x", "0" * 64 + ' {"k":"disconnect","n":"1","a":1,"u":"ann"}'):
                admin.execute("SELECT pg_logical_emit_message(true, 'rowcast', %s)", [content])
        position = await cast.publish("t", {"real": True})
        assert position.epoch == cast.hub.epoch
        await reader.until(lambda: any("real" in block for block in reader.blocks))
        assert reader.events == ["rowcast.ready"]
