"""The postgres log on a real server, read by one or more replicas; what breaks it, and how it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rowcast.config import Postgres
from rowcast.core.entry import Kind
from rowcast.core.position import parse_lsn
from rowcast.core.routes import Route, Router
from rowcast.errors import SetupError, Unavailable
from rowcast.logs.anchor import AnchorKeeper, Pool
from rowcast.logs.guard import Guard
from rowcast.logs.messages import Messages
from rowcast.logs.postgres import PostgresLog
from rowcast.replica import make_pool
from rowcast.sources import wal
from rowcast.sources.catalog import only, read_catalog
from rowcast.testing.log_suite import Tail, assert_orderly, data, tailing
from rowcast.testing.postgres import PostgresServer

_numbers = itertools.count(1)

OLD_BINARIES = Path("/usr/lib/postgresql/15/bin")
"""Where Debian puts Postgres 15, which treats a missing publication differently."""

SCHEMA = """
CREATE TABLE items (id bigserial PRIMARY KEY, grp int NOT NULL DEFAULT 0, text text);
CREATE TABLE quiet (id bigserial PRIMARY KEY);
CREATE PUBLICATION rowcast FOR TABLE items, quiet;
"""


def new_log(url: str, pool: Pool, *, slot: str = "rowcast", wal_sender_timeout: float = 10.0) -> PostgresLog:
    return PostgresLog(
        url,
        pool,
        Router([Route.from_templates("items", origin="test", topic="items:{grp}")]),
        Messages(b"0123456789abcdef"),
        replica=f"{next(_numbers):08x}",
        slot=slot,
        publication="rowcast",
        wal_sender_timeout=wal_sender_timeout,
    )


@contextlib.asynccontextmanager
async def opened(url: str, *, wal_sender_timeout: float = 10.0) -> AsyncIterator[PostgresLog]:
    """A log with a pool of its own, as each replica has one."""
    async with make_pool(Postgres(url=url)) as pool:
        log = new_log(url, pool, wal_sender_timeout=wal_sender_timeout)
        await log.open()
        try:
            yield log
        finally:
            await log.close()


@contextlib.asynccontextmanager
async def reading(url: str) -> AsyncIterator[tuple[PostgresLog, Tail]]:
    async with opened(url) as log, tailing(log) as tail:
        yield log, tail


async def guarding(log: PostgresLog, url: str, pool: Pool, **limits: Any) -> Guard:
    async with pool.connection() as connection:
        tables = only(await read_catalog(connection), ["public.items", "public.quiet"])
    settings: dict[str, Any] = {
        "retention": 600.0,
        "max_bytes": 1 << 30,
        "max_held_wal": 1 << 32,
        "drop_at_limit": False,
    }
    return Guard(log, pool, tables, publication="rowcast", **{**settings, **limits})


@contextlib.contextmanager
def admin(url: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def items(database: str) -> str:
    with admin(database) as connection:
        connection.execute(SCHEMA)
    return database


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of the test's own, to be broken."""
    with PostgresServer() as server:
        with admin(server.url()) as connection:
            connection.execute(SCHEMA)
        yield server


async def kill_walsenders(connection: psycopg.AsyncConnection[Any], application: str) -> None:
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_replication WHERE application_name = %s", [application]
    )


# Places


async def write(url: str, seed: int, stop: asyncio.Event) -> None:
    """Random transactions: rows, subtransactions, TRUNCATE, messages, DDL, rollbacks; with other things between."""
    rng = random.Random(seed)
    async with await psycopg.AsyncConnection.connect(url) as connection:
        while not stop.is_set():
            for _ in range(rng.randrange(1, 6)):
                action = rng.choices(
                    ["insert", "update", "delete", "quiet", "message", "subtransaction", "truncate", "ddl"],
                    [9, 5, 3, 4, 3, 2, 0.3, 0.2],
                )[0]
                if action == "insert":
                    await connection.execute(
                        "INSERT INTO items (grp, text) SELECT 1, 'x' FROM generate_series(1, %s)",
                        [rng.choice([1, 2, 3, 700])],
                    )
                elif action == "update":
                    await connection.execute(
                        "UPDATE items SET grp = grp + 1 WHERE id IN (SELECT id FROM items ORDER BY random() LIMIT 2"
                        " FOR UPDATE SKIP LOCKED)"
                    )
                elif action == "delete":
                    await connection.execute(
                        "DELETE FROM items WHERE id IN (SELECT id FROM items LIMIT 1 FOR UPDATE SKIP LOCKED)"
                    )
                elif action == "quiet":
                    await connection.execute("INSERT INTO quiet DEFAULT VALUES")
                elif action == "message":
                    await connection.execute("SELECT pg_logical_emit_message(%s, 'other', 'x')", [rng.random() < 0.6])
                elif action == "subtransaction":
                    with contextlib.suppress(ZeroDivisionError):
                        async with connection.transaction():
                            await connection.execute("INSERT INTO items (grp) VALUES (7)")
                            if rng.random() < 0.5:
                                raise ZeroDivisionError
                elif action == "truncate":
                    await connection.execute("TRUNCATE items, quiet")
                else:
                    await connection.execute("ALTER TABLE items ALTER COLUMN grp SET DEFAULT 1")
            try:
                await (connection.rollback() if rng.random() < 0.15 else connection.commit())
            except psycopg.errors.DeadlockDetected:
                await connection.rollback()


async def write_patiently(url: str, seed: int, stop: asyncio.Event) -> None:
    for attempt in itertools.count():
        if stop.is_set():
            return
        with contextlib.suppress(psycopg.errors.DeadlockDetected):
            await write(url, seed * 1000 + attempt, stop)


async def test_two_readers_see_the_same_places_however_often_one_is_cut(items: str) -> None:
    """Also inside of transactions: a resumed reader skips what it has, and counts what the other counts."""
    async with (
        reading(items) as (steady, whole),
        reading(items) as (cut, pieces),
        await psycopg.AsyncConnection.connect(items, autocommit=True) as connection,
    ):
        stop = asyncio.Event()
        writers = [asyncio.create_task(write_patiently(items, seed, stop)) for seed in range(3)]
        rng = random.Random(5)
        for _ in range(20):
            sessions, seen = cut.sessions, len(pieces.batches) + rng.randrange(1, 12)
            await kill_walsenders(connection, f"rowcast {cut._replica}")
            await pieces.until(lambda: cut.sessions > sessions and len(pieces.batches) >= seen)  # noqa: B023
        stop.set()
        await asyncio.gather(*writers)
        end = await steady.head()
        await whole.passed(end)
        await pieces.passed(end)
        assert cut.sessions > 20
        assert steady.sessions == 1
        assert whole.resets == pieces.resets == ["start"]
        assert_orderly(whole)
        assert_orderly(pieces)
        first = [(entry.place, entry.kind, entry.topic, entry.xid) for entry in whole.entries]
        second = [(entry.place, entry.kind, entry.topic, entry.xid) for entry in pieces.entries]
        assert len(first) > 100
        assert any(entry.kind is Kind.SWEEP for entry in whole.entries)
        assert first == second


async def test_a_truncate_is_a_sweep_on_every_replica(items: str) -> None:
    async with reading(items) as (log, tail), reading(items) as (_, other):
        with admin(items) as connection:
            connection.execute("INSERT INTO items (grp) VALUES (1)")
            connection.execute("TRUNCATE quiet, items")
        end = await log.head()
        await tail.passed(end)
        await other.passed(end)
        assert [(entry.kind, entry.topic) for entry in tail.entries] == [
            (Kind.DATA, "items:1"),
            (Kind.SWEEP, "items:"),
        ]
        assert tail.places == other.places


async def test_a_commit_that_answers_an_event_is_not_delayed(items: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A walsender of Postgres 16 to 18 can sleep through a commit that comes right after it has sent something."""
    # What would wake it otherwise is far away, so that a pause of this machine is not taken for it.
    monkeypatch.setattr(wal, "STATUS_INTERVAL", 60.0)
    async with opened(items, wal_sender_timeout=180.0) as log, tailing(log):
        slowest = 0.0
        for number in range(400):
            started = time.monotonic()
            await log.append(data(f"t{number}"))
            slowest = max(slowest, time.monotonic() - started)
        assert slowest < 15


# The anchor and the epoch


async def test_replicas_that_start_together_make_one_anchor(items: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        logs = []
        for _ in range(4):
            pool = await stack.enter_async_context(make_pool(Postgres(url=items)))
            logs.append(new_log(items, pool))
        await asyncio.gather(*(log.open() for log in logs))
        tails = [await stack.enter_async_context(tailing(log)) for log in logs]
        assert len({tail.batches[0].epoch for tail in tails}) == 1
        with admin(items) as connection:
            names = connection.execute(
                "SELECT slot_name FROM pg_replication_slots WHERE NOT temporary AND slot_name ^@ 'rowcast'"
            ).fetchall()
        assert len(names) == 2
        for log in logs:
            await log.close()


async def test_the_epoch_outlives_all_replicas(items: str) -> None:
    async with reading(items) as (log, first):
        await log.append(data("before"))
    async with reading(items) as (_, second):
        await second.until(lambda: second.topics == ["before"])
        assert second.batches[0].epoch == first.batches[0].epoch
        assert second.places == first.places


async def test_half_of_the_anchor_is_no_anchor(items: str) -> None:
    """Whichever half was dropped by hand: all is made anew, with another epoch."""
    async with make_pool(Postgres(url=items)) as pool:
        keeper = AnchorKeeper(pool, "rowcast")
        seen = set()
        for pattern in ("rowcast", "rowcast_epoch_%"):
            seen.add((await keeper.ensure()).nonce)
            with admin(items) as connection:
                connection.execute(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE %s",
                    [pattern],
                )
            assert await keeper.look() is None
        seen.add((await keeper.ensure()).nonce)
        assert len(seen) == 3
        assert len(await keeper.drop()) == 2
        assert await keeper.drop() == []


async def test_a_name_that_is_taken_is_said(items: str) -> None:
    with admin(items) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot('rowcast', 'test_decoding')")
        async with make_pool(Postgres(url=items)) as pool:
            with pytest.raises(SetupError, match=r"belongs to something else.*\[postgres\] slot"):
                await new_log(items, pool).open()
        connection.execute("SELECT pg_drop_replication_slot('rowcast')")


async def test_making_the_anchor_says_what_it_waits_for(
    items: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rowcast.logs.anchor.WATCH_AFTER", 0.05)
    async with make_pool(Postgres(url=items)) as pool:
        with psycopg.connect(items, application_name="forgetful") as idle:
            idle.execute("SELECT pg_current_xact_id()")
            log = new_log(items, pool)
            opening = asyncio.create_task(log.open())
            async with asyncio.timeout(30):
                while not log.anchor.waits_for:
                    await asyncio.sleep(0.01)
            assert "forgetful" in log.state().detail
            assert f"pg_terminate_backend({idle.info.backend_pid})" in log.state().detail
            assert "waits for a transaction of session" in caplog.text
            idle.rollback()
        await opening
        assert log.anchor.waits_for == ""


async def test_giving_up_the_wait_leaves_neither_a_slot_nor_the_lock(items: str) -> None:
    async with make_pool(Postgres(url=items)) as pool:
        with psycopg.connect(items) as idle:
            idle.execute("SELECT pg_current_xact_id()")
            opening = asyncio.create_task(new_log(items, pool).open())
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE query ^@ 'SELECT pg_create_logical'"
            with admin(items) as connection:
                async with asyncio.timeout(30):
                    while connection.execute(waiting).fetchone() != (1,):
                        await asyncio.sleep(0.01)
                opening.cancel()
                await asyncio.gather(opening, return_exceptions=True)
                assert connection.execute("SELECT count(*) FROM pg_replication_slots WHERE slot_name ^@ 'rowcast'"
                                          ).fetchone() == (0,)  # fmt: skip
                assert connection.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (
                    0,
                )
            idle.rollback()
        log = new_log(items, pool)
        await log.open()
        await log.anchor.drop()


async def test_a_dropped_anchor_resets_every_replica_into_the_same_epoch(items: str) -> None:
    async with (
        make_pool(Postgres(url=items)) as pool,
        reading(items) as (one, first),
        reading(items) as (two, second),
    ):
        await one.append(data("before"))
        await one.anchor.drop()
        for log in (one, two):
            await (await guarding(log, items, pool)).round(0.0)
        await first.until(lambda: len(first.resets) == 2)
        await second.until(lambda: len(second.resets) == 2)
        position = await two.append(data("after"))
        await first.passed(position.place)
        await second.passed(position.place)
        for tail in (first, second):
            assert tail.resets == ["start", "log_restarted"]
            assert_orderly(tail)
            assert tail.topics == ["before", "after"]
            assert tail.batches[-1].epoch == position.epoch != tail.batches[0].epoch


async def test_a_replica_that_was_away_for_longer_than_the_log_holds_is_reset(items: str) -> None:
    """The server would move its start up in silence."""
    async with opened(items) as log:
        tail = log.tail()
        assert (await anext(tail)).reset == "start"
        async with reading(items) as (other, seen):
            await other.append(data("missed"))
            with admin(items) as connection:
                connection.execute("INSERT INTO items (grp) VALUES (1)")
            end = await other.head()
            await seen.passed(end)
            assert await other.anchor.advance(other.position[0])
            log.restart_session("to be away")
            batch = await anext(tail)
            while batch.reset is None:
                batch = await anext(tail)
            assert batch.reset == "position_expired"
            assert batch.epoch == seen.batches[0].epoch
            assert batch.head >= end
            assert not batch.entries
        await tail.aclose()  # type: ignore[attr-defined]  # it is a generator


async def test_a_restored_copy_of_the_database_starts_a_new_log(server: PostgresServer, tmp_path: Path) -> None:
    """Its LSNs are given out a second time, for other contents."""
    copy = server.data.parent / "copy"
    async with reading(server.url()) as (log, tail):
        await log.append(data("before the copy"))

        def take() -> None:
            server.stop()
            shutil.copytree(server.data, copy, symlinks=True)
            server.start()

        def restore() -> None:
            server.stop()
            shutil.rmtree(server.data)
            shutil.copytree(copy, server.data, symlinks=True)
            if server._user is not None:
                subprocess.run(["chown", "-R", server._user, server.data], check=True)
            server.start()

        await asyncio.to_thread(take)
        await tail.passed(await _patiently(log))
        with admin(server.url()) as connection:
            connection.execute("INSERT INTO items (grp) SELECT 1 FROM generate_series(1, 5000)")
        await tail.passed(await log.head())
        await asyncio.to_thread(restore)
        await tail.until(lambda: len(tail.resets) == 2)
        assert tail.resets == ["start", "log_restarted"]
        assert tail.batches[-1].epoch != tail.batches[0].epoch
        assert_orderly(tail)


async def _patiently(log: PostgresLog) -> tuple[int, int]:
    while True:
        with contextlib.suppress(Unavailable):
            return await log.head()
        await asyncio.sleep(0.01)


async def test_the_anchor_can_be_copied_while_it_is_being_advanced(items: str) -> None:
    async with opened(items) as log:
        going = True
        moved = 0

        async def advance() -> None:
            nonlocal moved
            async with await psycopg.AsyncConnection.connect(items, autocommit=True) as connection:
                while going:
                    await connection.execute("INSERT INTO quiet DEFAULT VALUES")
                    cursor = await connection.execute("SELECT pg_current_wal_flush_lsn()::text")
                    [(lsn,)] = await cursor.fetchall()
                    moved += await log.anchor.advance(parse_lsn(lsn))

        advancing = asyncio.create_task(advance())
        last = 0
        for number in itertools.count():
            if number >= 15 and moved > 15:
                break
            session = await wal.WalSession.connect(items, name="rowcast test")
            copied = await session.copy_slot("rowcast", f"rowcast_copy_{number}")
            assert copied >= last
            last = copied
            await session.start(f"rowcast_copy_{number}", copied, "rowcast")
            await session.receive()
            await session.close()
        going = False
        await advancing


async def test_a_session_that_nobody_reads_is_not_watched_and_is_read_on_later(items: str) -> None:
    """What the server sends meanwhile would have the loop turn without end."""
    async with opened(items), make_pool(Postgres(url=items)) as pool:
        session = await wal.WalSession.connect(items, name="rowcast test")
        copied = await session.copy_slot("rowcast", "rowcast_watch")
        await session.start("rowcast_watch", copied, "rowcast")
        begun = (await session.receive()).sent  # it is watched from now on
        async with pool.connection() as connection:
            await connection.execute("INSERT INTO items (text) VALUES ('later')")
        async with asyncio.timeout(30):
            while session.watched:
                await asyncio.sleep(0.01)
            payloads: list[bytes] = []
            while not any(b"later" in payload for payload in payloads):
                payloads += (await session.receive()).payloads
            while (await session.receive()).sent <= begun:
                pass
        assert session.watched
        await session.close()


async def test_a_replica_for_which_there_is_no_slot_says_so_and_gets_the_next() -> None:
    with PostgresServer(settings={"max_replication_slots": "3"}) as server:
        with admin(server.url()) as connection:
            connection.execute(SCHEMA)
        async with opened(server.url()) as log:
            async with reading(server.url()) as (other, _):
                waiting = Tail(log)
                async with asyncio.timeout(30):
                    while "max_replication_slots" not in log.state().detail:
                        await asyncio.sleep(0.01)
                assert not log.state().ok
                await other.append(data("t"))
            await waiting.until(lambda: waiting.topics == ["t"])
            assert log.state().ok
            await waiting.stop()


# The publication


@pytest.fixture(params=["embedded", pytest.param("15", marks=pytest.mark.skipif(
    not OLD_BINARIES.exists(), reason="there is no Postgres 15"))])  # fmt: skip
def either(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    """Servers that skip changes in silence, and that refuse to go on, when the publication is missing."""
    with PostgresServer(binaries=OLD_BINARIES if request.param == "15" else None) as server:
        with admin(server.url()) as connection:
            connection.execute(SCHEMA)
        yield server


async def test_a_missing_publication_is_said_and_a_new_one_starts_a_new_log(
    either: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = either.url()
    async with make_pool(Postgres(url=url)) as pool, reading(url) as (log, tail):
        guard = await guarding(log, url, pool)
        with admin(url) as connection:
            connection.execute("INSERT INTO items (grp) VALUES (1)")
            connection.execute("DROP PUBLICATION rowcast")
            connection.execute("INSERT INTO items (grp) VALUES (2)")
            await tail.until(lambda: not log.state().ok and log.publication_lost)
            assert "'rowcast' is missing" in log.state().detail
            assert "CREATE PUBLICATION" in log.state().detail
            await guard.round(0.0)
            assert any('run: CREATE PUBLICATION "rowcast"' in problem for problem in guard.problems)
            connection.execute("CREATE PUBLICATION rowcast FOR TABLE items, quiet")
            await guard.round(5.0)
            await tail.until(lambda: len(tail.resets) == 2)
            connection.execute("INSERT INTO items (grp) VALUES (3)")
        await tail.passed(await log.head())
        assert log.state().ok
        assert guard.problems == []
        assert tail.resets == ["start", "log_restarted"]
        assert tail.topics == ["items:1", "items:3"]
        warnings = [record for record in caplog.records if "can't be read" in record.message]
        assert len(warnings) <= 2, "the same complaint is not repeated with each attempt"


async def test_a_table_that_left_the_publication_is_noticed(items: str) -> None:
    async with make_pool(Postgres(url=items)) as pool, reading(items) as (log, tail):
        guard = await guarding(log, items, pool)
        await guard.round(0.0)
        assert guard.problems == []
        with admin(items) as connection:
            connection.execute("ALTER PUBLICATION rowcast DROP TABLE items")
            await guard.round(60.0)
            [problem] = guard.problems
            assert problem.endswith('run: ALTER PUBLICATION "rowcast" ADD TABLE "public"."items"')
            await guard.round(65.0)
            assert guard.problems, "it is not forgotten between two checks"
            connection.execute('ALTER PUBLICATION "rowcast" ADD TABLE "public"."items"')
            await guard.round(125.0)
        await tail.until(lambda: tail.resets == ["start", "log_restarted"])
        assert guard.problems == []


async def test_a_table_that_lost_its_key_or_is_gone_is_noticed(items: str) -> None:
    async with make_pool(Postgres(url=items)) as pool, reading(items) as (log, _):
        guard = await guarding(log, items, pool)
        with admin(items) as connection:
            connection.execute("ALTER TABLE items DROP CONSTRAINT items_pkey")
            connection.execute("ALTER TABLE quiet RENAME TO silent")
        await guard.round(0.0)
        assert any("UPDATE and DELETE fail" in problem and "items" in problem for problem in guard.problems)
        assert any("public.quiet no longer exists" in problem for problem in guard.problems)


# A reader that does not read


async def test_a_reader_that_stops_lets_a_checkpoint_and_a_shutdown_finish() -> None:
    """It does not answer either, so the server cuts it; afterwards it resumes, or is reset.

    A walsender that was told to go still wants to say so, into a socket that is full: hence `tcp_user_timeout`.
    """
    settings = {"max_slot_wal_keep_size": "1MB", "max_wal_size": "32MB", "min_wal_size": "32MB"}
    with PostgresServer(settings=settings) as server:
        with admin(server.url()) as connection:
            connection.execute(SCHEMA)
        async with opened(server.url(), wal_sender_timeout=1.0) as log:
            tail = log.tail()
            assert (await anext(tail)).reset == "start"

            def flood_and_stop() -> tuple[float, float]:
                with admin(server.url()) as connection:
                    for _ in range(3):
                        connection.execute(
                            "INSERT INTO items (text) SELECT repeat('x', 1000) FROM generate_series(1, 20000)"
                        )
                        connection.execute("SELECT pg_switch_wal()")
                    started = time.monotonic()
                    connection.execute("CHECKPOINT")
                    checkpoint = time.monotonic() - started
                started = time.monotonic()
                server.stop(signal.SIGINT, timeout=30)
                return checkpoint, time.monotonic() - started

            checkpoint, shutdown = await asyncio.to_thread(flood_and_stop)
            assert checkpoint < 15
            assert shutdown < 15
            server.start()
            async with asyncio.timeout(30):
                batch = await anext(tail)
                while batch.reset is None:
                    batch = await anext(tail)
            assert batch.reset == "log_restarted"
            await tail.aclose()  # type: ignore[attr-defined]  # it is a generator


async def test_a_huge_transaction_is_answered_in_the_middle(items: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server would cut a reader that says nothing until the commit; and it comes in pieces."""
    clock = Clock(step=2 * wal.STATUS_INTERVAL)
    monkeypatch.setattr(wal, "time", clock)
    async with opened(items) as log, await psycopg.AsyncConnection.connect(items, autocommit=True) as connection:
        await connection.execute(
            "INSERT INTO items (grp, text) SELECT 1, repeat('x', 99) FROM generate_series(1, 50000)"
        )
        end = await log.head()
        sizes: list[int] = []
        answers: set[int] = set()
        async for batch in log.tail():
            sizes.append(len(batch.entries))
            if batch.head[1]:  # in the middle of the transaction
                answers.add(clock.statuses)
            if batch.head >= end:
                break
        assert log.sessions == 1
        assert sum(sizes) == 50_000
        assert max(sizes) <= wal.CHUNK_MESSAGES
        # By its clock a status is due at each read, and it takes at least so many to read this.
        assert len(answers) > 50_000 / wal.CHUNK_MESSAGES - 10


class Clock:
    """A clock that goes on by `step` seconds whenever it is read, and counts the statuses that carry its time."""

    def __init__(self, step: float) -> None:
        self._step = step
        self._now = time.monotonic()
        self.statuses = 0

    def monotonic(self) -> float:
        self._now += self._step
        return self._now

    def time_ns(self) -> int:
        self.statuses += 1
        return time.time_ns()


# Publishing


async def test_publishing_without_a_tail_is_refused_rather_than_unknown(
    items: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowcast.logs.postgres.APPEND_TIMEOUT", 0.2)
    async with opened(items) as log:
        with pytest.raises(Unavailable, match="it was not published"):
            await log.append(data("t"))


async def test_a_publish_that_does_not_come_by_is_unknown(items: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rowcast.logs.postgres.APPEND_TIMEOUT", 0.3)
    async with reading(items) as (log, tail):
        monkeypatch.setattr(log._capture, "_seen", lambda nonce, place: None)
        with pytest.raises(Unavailable, match="unknown whether it was published"):
            await log.append(data("t"))
        await tail.passed(await log.head())
        assert tail.topics == ["t"]


async def test_messages_of_others_are_ignored_and_said_once(items: str, caplog: pytest.LogCaptureFixture) -> None:
    async with reading(items) as (log, tail):
        with admin(items) as connection:
            for _ in range(5):
                connection.execute("SELECT pg_logical_emit_message(true, 'rowcast', 'forged')")
                await tail.passed(await log.head())
        assert tail.entries == []
        assert sum("did not sign" in record.message for record in caplog.records) == 1


async def test_a_mark_and_a_publish_do_not_wait_for_an_absent_standby(server: PostgresServer) -> None:
    with admin(server.url()) as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'absent'")
        connection.execute("SELECT pg_reload_conf()")
    async with reading(server.url()) as (log, tail):
        await tail.passed(await log.head())
        await log.append(data("t"))


# Closing


def test_closing_on_uvloop(server: PostgresServer) -> None:
    """uvloop aborts the process when a socket that it polls is closed under it."""
    script = f"""
import asyncio, uvloop
from rowcast.config import Postgres
from rowcast.core.routes import Router
from rowcast.logs.messages import Messages
from rowcast.logs.postgres import PostgresLog
from rowcast.replica import make_pool
from rowcast.testing.log_suite import Tail, data

async def main():
    url = {server.url()!r}
    async with make_pool(Postgres(url=url)) as pool:
        for number in range(5):
            log = PostgresLog(url, pool, Router([]), Messages(b"x" * 16), replica=str(number),
                              slot="rowcast", publication="rowcast")
            await log.open()
            tail = Tail(log)
            await tail.until(lambda: bool(tail.batches))
            await log.append(data("t"))
            await log.close()
            await tail.ended()
            await asyncio.sleep(0)
    print("closed")

uvloop.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "closed\n", done.stderr
    assert done.returncode == 0
