"""The guard of a postgres log: how far the anchor is moved, what is held back, and what is said of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from rowcast.config import Postgres
from rowcast.core.position import parse_lsn
from rowcast.core.routes import Router
from rowcast.logs.anchor import Pool
from rowcast.logs.guard import MARK_BYTES, TOUCH_INTERVAL, Guard
from rowcast.logs.messages import Messages
from rowcast.logs.postgres import PostgresLog
from rowcast.replica import make_pool
from rowcast.sources import wal
from rowcast.testing.log_suite import Tail, data, tailing
from rowcast.testing.postgres import PostgresServer

_numbers = itertools.count(1)


class Guarded:
    """A replica's log with its tail and its guard, whose rounds the test drives."""

    def __init__(self, url: str, pool: Pool, log: PostgresLog, tail: Tail, guard: Guard) -> None:
        self.url = url
        self.pool = pool
        self.log = log
        self.tail = tail
        self.guard = guard

    async def write(self, megabytes: int, *, url: str | None = None) -> None:
        """Write WAL, none of it for us."""
        async with await psycopg.AsyncConnection.connect(url or self.url, autocommit=True) as connection:
            await connection.execute("CREATE TABLE IF NOT EXISTS filler (text text)")
            for _ in range(megabytes):
                await connection.execute("INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 920)")

    async def seen(self) -> None:
        """Wait until the tail has seen all that was written."""
        await self.tail.passed(await self.log.head())

    async def anchor(self) -> tuple[int, int]:
        """Where the anchor is: confirmed, and restart."""
        async with self.pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT confirmed_flush_lsn::text, restart_lsn::text FROM pg_replication_slots"
                " WHERE slot_name = 'rowcast'"
            )
            [(confirmed, restart)] = await cursor.fetchall()
        return parse_lsn(confirmed), parse_lsn(restart)


@contextlib.asynccontextmanager
async def guarded(url: str, **limits: Any) -> AsyncIterator[Guarded]:
    settings: dict[str, Any] = {"retention": 600.0, "max_bytes": 1 << 30, "max_held_wal": 1 << 32}
    settings |= {"drop_at_limit": False, "interval": 0.05, **limits}
    with psycopg.connect(url, autocommit=True) as connection:
        if connection.execute("SELECT FROM pg_publication WHERE pubname = 'rowcast'").fetchone() is None:
            connection.execute("CREATE PUBLICATION rowcast")
    async with make_pool(Postgres(url=url)) as pool:
        log = PostgresLog(
            url,
            pool,
            Router([]),
            Messages(b"0123456789abcdef"),
            replica=f"{next(_numbers):08x}",
            slot="rowcast",
            publication="rowcast",
        )
        await log.open()
        try:
            async with tailing(log) as tail:
                yield Guarded(url, pool, log, tail, Guard(log, pool, {}, publication="rowcast", **settings))
        finally:
            await log.close()


async def test_the_anchor_follows_at_the_distance_of_the_retention(database: str) -> None:
    async with guarded(database, retention=100.0) as replica:
        places = []
        for number in range(4):
            await replica.log.append(data(f"t{number}"))
            places.append(replica.log.position[0])
            await replica.guard.round(number * 40.0)
        # At 120 s the sample of 0 s is older than the retention, that of 40 s is not.
        confirmed, _ = await replica.anchor()
        assert places[0] <= confirmed < places[1]
        await replica.guard.round(181.0)
        confirmed, _ = await replica.anchor()
        assert places[2] <= confirmed < places[3]
        async with guarded(database) as other:
            await other.seen()
            assert other.tail.topics == ["t3"]


async def test_the_anchor_follows_at_the_distance_of_max_bytes(database: str) -> None:
    async with guarded(database, max_bytes=4 << 20) as replica:
        await replica.write(12)
        await replica.seen()
        await replica.guard.round(0.0)
        confirmed, _ = await replica.anchor()
        assert 3 << 20 < replica.log.position[0] - confirmed < 5 << 20


async def test_the_anchor_is_never_ahead_of_what_the_replica_has_read(database: str) -> None:
    async with guarded(database, max_bytes=1 << 20) as replica:
        await replica.guard.round(0.0)
        await replica.tail.stop()
        position = replica.log.position[0]
        await replica.write(6)
        await replica.guard.round(5.0)
        confirmed, _ = await replica.anchor()
        assert confirmed <= position


async def test_an_idle_anchor_is_touched(database: str) -> None:
    """Or Postgres 18 lets go of it after idle_replication_slot_timeout."""
    async with guarded(database) as replica:
        touched = 0
        advance = replica.guard._anchor.advance

        async def counting(lsn: int) -> bool:
            nonlocal touched
            touched += 1
            return await advance(lsn)

        replica.guard._anchor.advance = counting  # type: ignore[method-assign]
        for number in range(5):
            await replica.guard.round(1000.0 + number * TOUCH_INTERVAL / 2)
        assert touched == 3


async def test_replicas_take_turns(database: str) -> None:
    async with guarded(database) as replica, replica.pool.connection() as connection:
        lock = replica.log.anchor._lock
        await connection.execute("SELECT pg_advisory_lock(%s)", [lock])
        assert not await replica.log.anchor.advance(replica.log.position[0])
        assert not await replica.log.anchor.mark("rowcast.mark")
        await connection.execute("SELECT pg_advisory_unlock(%s)", [lock])
        assert await replica.log.anchor.advance(replica.log.position[0])


async def test_slots_do_not_stand_still_while_only_others_write(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published tables are idle and the rest of the server writes: WAL must not pile up."""
    monkeypatch.setattr(wal, "STATUS_INTERVAL", 0.05)
    other = postgres.create_database("busy")
    try:
        async with guarded(database, max_bytes=2 << 20) as replica:
            for number in range(6):
                await replica.write(5, url=other)
                # What the background writer does every 15 s: without it no slot lets go of anything.
                async with replica.pool.connection() as connection:
                    await connection.execute("CHECKPOINT")
                    [(end,)] = await (await connection.execute("SELECT pg_current_wal_flush_lsn()::text")).fetchall()
                # No commit comes by: the server's keepalives tell.
                await replica.tail.passed((parse_lsn(end), 0))
                await replica.guard.round(number * 30.0)
            async with asyncio.timeout(20):
                now = 1000.0
                while not 0 < replica.guard.held < 8 << 20:  # of the 30 MB that were written
                    await asyncio.sleep(0.02)
                    now += 30.0
                    await replica.guard.round(now)
            assert {slot.name for slot in replica.guard.slots if slot.held} == {
                "rowcast",
                f"rowcast_{replica.log._replica}_1",
            }
            assert replica.tail.entries == []
    finally:
        with psycopg.connect(postgres.url(), autocommit=True) as connection:
            connection.execute("DROP DATABASE busy WITH (FORCE)")


async def test_a_mark_is_emitted_only_when_nothing_else_comes_by(database: str) -> None:
    async with guarded(database) as replica:
        marks = 0
        mark = replica.guard._anchor.mark

        async def counting(prefix: str) -> bool:
            nonlocal marks
            marks += 1
            return await mark(prefix)

        replica.guard._anchor.mark = counting  # type: ignore[method-assign]
        await replica.guard.round(1e9)
        await replica.guard.round(1e9)
        assert marks == 1, "nothing was written since the first"
        await replica.write(1 + 2 * MARK_BYTES // (1 << 20))
        await replica.guard.round(1e9)
        assert marks == 2
        await replica.write(1 + 2 * MARK_BYTES // (1 << 20))
        await replica.seen()
        await replica.guard.round(replica.log.last_commit)
        assert marks == 2, "a transaction came by just now"


async def test_what_is_held_is_said_with_its_cause(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "STATUS_INTERVAL", 0.05)
    async with guarded(database, max_held_wal=16 << 20) as replica:
        with psycopg.connect(database, application_name="forgetful") as idle:
            idle.execute("SELECT pg_current_xact_id()")
            await replica.write(10)
            await replica.seen()
            await replica.guard.round(0.0)
            [anchor, *_] = replica.guard.problems
            assert anchor.startswith("slot rowcast holds back ")
            assert f"pg_terminate_backend({idle.info.backend_pid})" in anchor
            assert replica.guard.held > 5 << 20
            idle.rollback()
        for number in itertools.count(1):
            await replica.write(1)
            async with replica.pool.connection() as connection:
                await connection.execute("CHECKPOINT")
            await replica.seen()
            await replica.guard.round(number * 100.0)
            if not replica.guard.problems:
                break
            assert number < 20


async def test_the_anchor_is_dropped_at_the_limit_if_so_configured(database: str) -> None:
    async with guarded(database, max_held_wal=4 << 20, drop_at_limit=True) as replica:
        with psycopg.connect(database, application_name="forgetful") as idle:
            idle.execute("SELECT pg_current_xact_id()")
            await replica.write(6)
            await replica.seen()
            await replica.guard.round(0.0)
            # A new one can't be made before the transaction ends; what was held is let go meanwhile.
            async with asyncio.timeout(20), replica.pool.connection() as connection:
                held = (
                    "SELECT count(*) FROM pg_replication_slots"
                    " WHERE slot_name ^@ 'rowcast' AND confirmed_flush_lsn IS NOT NULL"
                )
                while await (await connection.execute(held)).fetchone() != (0,):
                    await asyncio.sleep(0.02)
            assert replica.tail.resets == ["start"]
            idle.rollback()
        await replica.tail.until(lambda: replica.tail.resets == ["start", "log_restarted"])


async def test_the_lag_is_told(database: str) -> None:
    async with guarded(database) as replica:
        await replica.seen()
        await replica.guard.round(0.0)
        assert replica.guard.lag == 0.0
        await replica.tail.stop()
        await replica.write(1)
        loop = asyncio.get_running_loop()
        await replica.guard.round(loop.time() - 30.0)
        assert 29.0 < replica.guard.lag < 60.0


async def test_a_guard_that_fails_says_so_and_goes_on(
    database: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with guarded(database) as replica:
        failing = True
        rounds = 0
        look = replica.guard._anchor.look

        async def looking() -> Any:
            nonlocal rounds
            rounds += 1
            if failing:
                raise psycopg.OperationalError("the server is away")
            return await look()

        monkeypatch.setattr(replica.guard._anchor, "look", looking)
        running = asyncio.create_task(replica.guard.run())
        async with asyncio.timeout(30):
            while rounds < 4:
                await asyncio.sleep(0.01)
            assert replica.guard.problems == ["the guard of the log fails: the server is away"]
            failing = False
            while replica.guard.problems:
                await asyncio.sleep(0.01)
        running.cancel()
        assert sum("the server is away" in record.message for record in caplog.records) == 1
