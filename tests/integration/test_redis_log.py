"""The log on Redis or Valkey with a real Postgres: what is told to streams when something goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from rowcast import Rowcast, slots
from rowcast.errors import SetupError, Unavailable
from rowcast.logs import leader, redis_store
from rowcast.logs.redis import RedisLog
from rowcast.logs.redis_store import HEAD, STREAM
from rowcast.sources.wal import WalSession
from rowcast.testing.local import LocalStream
from rowcast.testing.postgres import PostgresServer, free_port
from rowcast.testing.valkey import ValkeyServer

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def items(database: str) -> str:
    """A database with a table."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY, text text)")
    return database


@contextlib.asynccontextmanager
async def running(url: str | dict[str, str] | None, valkey: ValkeyServer, **log: object) -> AsyncIterator[Rowcast]:
    route = [{"table": "items", "topic": "t", "columns": ["id"]}] if url else None
    cast = Rowcast(  # type: ignore[call-arg]
        postgres=url, log={"url": valkey.url, "redo": "2s"} | log, auth=SECRET, api={"key": "k"}, route=route
    )
    async with cast.lifespan():
        yield cast


def log_of(cast: Rowcast) -> RedisLog:
    assert isinstance(cast.log, RedisLog)
    return cast.log


def insert(url: str, count: int = 1) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(count):
            connection.execute("INSERT INTO items (text) VALUES ('x')")


def committed(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM items ORDER BY id")]


def numbers(stream: LocalStream) -> list[int]:
    return [record["id"] for record in stream.records()]


def names(stream: LocalStream) -> list[str]:
    return [block.event for block in stream.blocks if block.event.startswith("rowcast.")]


async def patiently(stream: LocalStream) -> None:
    """Wait for all that is committed, asking again while a connection is away."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(Unavailable):
                return await stream.settled()
            await asyncio.sleep(0)


async def test_two_replicas_give_the_same_changes_at_the_same_positions(items: str, valkey: ValkeyServer) -> None:
    async with running(items, valkey) as one, running(items, valkey) as two:
        streams = [LocalStream(one, "ann", ["t"]), LocalStream(two, "bob", ["t"])]
        for stream in streams:
            await stream.ready()
        insert(items, 20)
        position = await two.publish("t", {"n": 1})
        insert(items, 5)
        for stream in streams:
            await stream.settled()
            assert numbers(stream) == committed(items)
        # Without heartbeats, which are of each stream alone.
        ids = [[block.id for block in stream.blocks if block.event == "message" and block.data] for stream in streams]
        assert ids[0] == ids[1]
        assert str(position) in ids[0]
        leaders = [log_of(cast).leader for cast in (one, two)]
        assert sorted(bool(leader and leader.leading) for leader in leaders) == [False, True]


async def test_a_mark_passes_in_milliseconds(items: str, valkey: ValkeyServer) -> None:
    """The heads of an idle database move as soon as somebody waits for them."""
    async with running(items, valkey) as cast:
        clock = asyncio.get_running_loop().time
        times = []
        for _ in range(20):
            started = clock()
            await cast.hub.passed(await cast.log.head())
            times.append(clock() - started)
        assert sorted(times)[10] < 1.0  # of the 5 s between two heartbeats


async def test_a_replica_that_comes_later_has_a_warm_ring(items: str, valkey: ValkeyServer) -> None:
    async with running(items, valkey) as one:
        stream = LocalStream(one, "ann", ["t"])
        await stream.ready()
        insert(items, 1)
        await stream.settled()
        position = stream.position
        insert(items, 3)
        await stream.settled()
    async with running(items, valkey) as two:
        stream = LocalStream(two, "ann", ["t"], last_event_id=position)
        await stream.ready()
        assert numbers(stream) == committed(items)[1:]
        assert "rowcast.reset" not in names(stream)


async def test_connections_that_are_cut_lose_nothing(items: str, valkey: ValkeyServer) -> None:
    async with running(items, valkey) as cast:
        stream = LocalStream(cast, "ann", ["t"])
        await stream.ready()
        with valkey.client() as client, psycopg.connect(items, autocommit=True) as admin:
            for number in range(30):
                await asyncio.to_thread(insert, items, 3)
                if number % 3 == 0:
                    client.client_kill_filter(_type="normal", skipme=True)
                if number % 10 == 5:
                    admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
        await patiently(stream)
        assert numbers(stream) == committed(items)
        assert names(stream) == ["rowcast.ready"]


async def test_a_redis_that_freezes_loses_nothing(
    items: str, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For longer than the connections wait."""
    monkeypatch.setattr(redis_store, "TIMEOUT", 1.2)
    async with running(items, valkey) as cast:
        stream = LocalStream(cast, "ann", ["t"])
        await stream.ready()
        valkey.pause()
        try:
            await asyncio.to_thread(insert, items, 20)
            async with asyncio.timeout(20):
                while cast.log.state().ok:
                    await asyncio.sleep(0.02)
            with pytest.raises(Unavailable):
                await cast.publish("t", 1)
        finally:
            valkey.resume()
        await patiently(stream)
        assert numbers(stream) == committed(items)
        assert names(stream) == ["rowcast.ready"]
        assert cast.log.state().ok


@pytest.mark.parametrize("how", ["flush", "restart", "del"])
async def test_a_log_that_is_gone_is_a_reset(
    items: str, valkey: ValkeyServer, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "HEARTBEAT", 60.0)  # so that only what notices it at once can
    async with running(items, valkey) as one, running(items, valkey) as two:
        streams = [LocalStream(cast, "ann", ["t"]) for cast in (one, two)]
        for stream in streams:
            await stream.ready()
        insert(items, 5)
        for stream in streams:
            await stream.settled()
        epoch = one.hub.epoch
        if how == "restart":
            await asyncio.to_thread(valkey.kill)
            await asyncio.to_thread(insert, items, 5)
            await asyncio.to_thread(valkey.start)
        else:
            with valkey.client() as client:
                client.flushall() if how == "flush" else client.delete(HEAD)
        # An idle database must not keep anybody from being told.
        for stream in streams:
            await stream.until(lambda: "rowcast.reset" in names(stream))  # noqa: B023  # awaited at once
        insert(items, 5)
        last = committed(items)[-1]
        for stream in streams:
            await stream.until(lambda: numbers(stream)[-1:] == [last])  # noqa: B023  # awaited at once
            reset = next(i for i, block in enumerate(stream.blocks) if block.event == "rowcast.reset")
            after = [b.data["record"]["id"] for b in stream.blocks[reset:] if b.event == "message"]
            assert after == list(range(after[0], last + 1))
        assert one.hub.epoch == two.hub.epoch != epoch
        await one.publish("t", "again")


async def test_a_stream_without_its_items_is_a_reset(items: str, valkey: ValkeyServer) -> None:
    """Evicted, or deleted by hand: the head says that there was more."""
    async with running(items, valkey) as cast:
        stream = LocalStream(cast, "ann", ["t"])
        await stream.ready()
        with valkey.client() as client:
            client.hset(HEAD, "pub", "0-0/lost")
        await stream.until(lambda: "rowcast.reset" in names(stream))
        insert(items, 1)
        await stream.until(lambda: numbers(stream) == committed(items))


@pytest.mark.parametrize("published", [False, True])
async def test_a_fail_over_that_loses_the_end(items: str, valkey: ValkeyServer, published: bool) -> None:
    """What the WAL still has is appended again; a published entry that was seen and is gone is a reset."""
    async with running(items, valkey, redo="30s") as cast:
        stream = LocalStream(cast, "ann", ["t"])
        await stream.ready()
        with valkey.client() as client:
            insert(items, 5)
            await stream.settled()
            kept = [(key, client.dump(key)) for key in (STREAM, HEAD)]
            insert(items, 5)
            if published:
                await cast.publish("t", "lost")
            await stream.settled()
            with client.pipeline(transaction=True) as pipe:
                for key, value in kept:
                    pipe.restore(key, 0, value, replace=True)  # type: ignore[arg-type]  # what dump returned
                pipe.execute()
        insert(items, 5)
        if published:
            await stream.until(lambda: "rowcast.reset" in names(stream))
        await stream.settled()
        assert numbers(stream)[-1] == committed(items)[-1]
        assert len(set(numbers(stream))) == len(numbers(stream))
        if not published:
            assert numbers(stream) == committed(items)
            assert names(stream) == ["rowcast.ready"]


async def test_a_restored_copy_of_the_database_is_a_new_epoch(items: str, valkey: ValkeyServer) -> None:
    """Its WAL ends before what the log has, and will go on with other contents at the same places."""
    async with running(items, valkey) as cast:
        epoch = cast.hub.epoch
        insert(items, 2)
        await cast.hub.passed(await cast.log.head())
    with valkey.client() as client:
        client.hset(HEAD, mapping={"wal": "99999999999999-0", "top": "99999999999999-0"})
    async with running(items, valkey) as cast:
        assert cast.hub.epoch != epoch
        stream = LocalStream(cast, "ann", ["t"])
        await stream.ready()
        insert(items, 1)
        await stream.settled()
        assert numbers(stream) == [3]


async def test_a_new_slot_is_a_new_epoch(items: str, valkey: ValkeyServer) -> None:
    async with running(items, valkey) as cast:
        epoch = cast.hub.epoch
        insert(items, 2)
        await cast.hub.passed(await cast.log.head())
    with psycopg.connect(items, autocommit=True) as connection:
        connection.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
    async with running(items, valkey) as cast:
        async with asyncio.timeout(30):
            while cast.hub.epoch == epoch:
                await asyncio.sleep(0.02)


async def test_the_slot_that_a_replica_reads_is_dropped_after_its_end_only(items: str, valkey: ValkeyServer) -> None:
    async with running(items, valkey) as cast:
        insert(items)
        await cast.hub.passed(await cast.log.head())
        with pytest.raises(SetupError, match="stop the replicas"):
            await slots.drop(cast.config)
    assert cast.config.postgres is not None
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(SetupError):
                assert cast.config.postgres.slot in (await slots.drop(cast.config))[0]
                break
            await asyncio.sleep(0.02)


async def test_a_publication_that_was_away_is_a_reset(
    items: str, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "HEARTBEAT", 0.3)
    async with running(items, valkey) as cast:
        stream = LocalStream(cast, "ann", ["t"])
        await stream.ready()
        with psycopg.connect(items, autocommit=True) as admin:
            admin.execute("DROP PUBLICATION rowcast")
            insert(items, 1)
            async with asyncio.timeout(20):
                while "publication" not in cast.log.state().detail:
                    await asyncio.sleep(0.02)
            admin.execute("CREATE PUBLICATION rowcast FOR TABLE items")
        await stream.until(lambda: "rowcast.reset" in names(stream))
        insert(items, 1)
        await stream.until(lambda: numbers(stream) == [2])
        async with asyncio.timeout(20):
            while not cast.log.state().ok:
                await asyncio.sleep(0.02)


async def test_a_table_that_left_the_publication_is_a_reset_when_it_is_back(items: str, valkey: ValkeyServer) -> None:
    async with running(items, valkey) as cast:
        watch = cast.replica.guard
        assert watch is not None
        stream = LocalStream(cast, "ann", ["t"])
        await stream.ready()
        with psycopg.connect(items, autocommit=True) as admin:
            admin.execute("ALTER PUBLICATION rowcast DROP TABLE items")
            insert(items, 1)
            await watch.round(0.0)
            assert "items" in watch.problems[0]
            admin.execute("ALTER PUBLICATION rowcast ADD TABLE items")
        await watch.round(1.0)
        assert watch.problems == []
        await stream.until(lambda: "rowcast.reset" in names(stream))
        insert(items, 1)
        await stream.settled()
        assert numbers(stream) == [2]


@pytest.mark.parametrize("act", ["warn", "drop"])
async def test_a_slot_that_holds_too_much(items: str, valkey: ValkeyServer, act: str) -> None:
    postgres = {"url": items, "max_held_wal": "1KB", "on_held_wal": act}
    async with running(postgres, valkey) as cast:
        watch = cast.replica.guard
        assert watch is not None
        stream = LocalStream(cast, "ann", ["t"])
        await stream.ready()
        insert(items, 20)
        await stream.settled()
        epoch = cast.hub.epoch
        await watch.round(0.0)
        assert watch.held > 1024
        assert "slot rowcast holds back" in watch.problems[0]
        if act == "drop":
            await stream.until(lambda: "rowcast.reset" in names(stream))
            assert cast.hub.epoch != epoch
        insert(items, 1)
        await stream.settled()
        assert numbers(stream)[-1] == committed(items)[-1]
        assert cast.hub.epoch == epoch or act == "drop"


async def test_the_slot_follows_and_stays_behind(
    items: str, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is confirmed up to what was in the log `redo` ago, also while our tables are idle."""
    monkeypatch.setattr(leader, "HEARTBEAT", 0.5)
    query = "SELECT confirmed_flush_lsn, pg_current_wal_lsn() FROM pg_replication_slots WHERE slot_name = 'rowcast'"
    async with running(items, valkey, redo="1s"):
        insert(items, 3)
        with psycopg.connect(items, autocommit=True) as connection:
            row = connection.execute(query).fetchone()
            assert row is not None
            confirmed, target = row
            assert confirmed < target
            async with asyncio.timeout(30):
                while confirmed < target:
                    await asyncio.sleep(0.05)
                    row = connection.execute(query).fetchone()
                    assert row is not None
                    confirmed = row[0]


async def test_the_oldest_go_first(valkey: ValkeyServer) -> None:
    async with running(None, valkey, max_entries=10) as cast:
        for number in range(30):
            await cast.publish("t", number)
        with valkey.client() as client:
            async with asyncio.timeout(20):
                while client.xlen(STREAM) > 10:
                    await cast.publish("t", "more")
                    await asyncio.sleep(0.02)
    async with running(None, valkey) as cast:
        position = await cast.publish("t", "last")
        assert position.epoch == cast.hub.epoch


async def test_a_redis_that_is_full_refuses_and_recovers(valkey: ValkeyServer) -> None:
    async with running(None, valkey) as cast:
        await cast.publish("t", 1)
        with valkey.client() as client:
            client.config_set("maxmemory", "1")
            with pytest.raises(Unavailable, match=r"raise its maxmemory.*was not published"):
                await cast.publish("t", 2)
            client.config_set("maxmemory", "0")
        await cast.publish("t", 3)


async def test_a_read_only_redis_is_named(valkey: ValkeyServer) -> None:
    async with running(None, valkey) as cast:
        await cast.publish("t", 1)  # the log has begun then
        with valkey.client() as client:
            client.replicaof("127.0.0.1", str(free_port()))
            with pytest.raises(Unavailable, match=r"name the primary.*was not published"):
                await cast.publish("t", 2)
            client.replicaof("NO", "ONE")
        await cast.publish("t", 3)


async def test_a_shutdown_of_postgres_does_not_wait_for_what_is_kept_for_reading_again(valkey: ValkeyServer) -> None:
    """A walsender goes when all was received: not when the slot was confirmed, which is `redo` later."""
    with PostgresServer() as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY, text text)")
        async with running(server.url(), valkey, redo="1h") as cast:
            stream = LocalStream(cast, "ann", ["t"])
            await stream.ready()
            moment = time.time()
            insert(server.url(), 3)
            await patiently(stream)
            await asyncio.to_thread(server.stop, timeout=60)  # raises when it is still there then
            async with asyncio.timeout(60):
                while cast.log.state().ok:
                    await asyncio.sleep(0.05)
            assert cast.log.state().since >= moment, "the WAL was read until then, and is behind since then"
            await asyncio.to_thread(server.start)
            insert(server.url(), 3)
            await patiently(stream)
            assert numbers(stream) == [1, 2, 3, 4, 5, 6]


async def test_without_redis_it_does_not_start() -> None:
    cast = Rowcast(log=f"redis://127.0.0.1:{free_port()}/0", auth=SECRET)
    with pytest.raises(SetupError, match="Redis can't be reached"):
        await cast.start()


async def test_published_entries_keep_their_order(valkey: ValkeyServer) -> None:
    async with running(None, valkey) as one, running(None, valkey) as two:
        stream = LocalStream(one, "ann", ["t"])
        await stream.ready()
        counter = itertools.count()
        positions = [await cast.publish("t", next(counter)) for _ in range(20) for cast in (one, two)]
        await stream.settled()
        assert [data["data"] for data in stream.events()] == list(range(40))
        assert [position.place for position in positions] == sorted(position.place for position in positions)


def position_of(stream: LocalStream, number: int) -> str:
    return next(b.id for b in stream.blocks if b.event == "message" and b.data and b.data["record"]["id"] == number)


async def test_a_ring_smaller_than_the_log_is_read_back(items: str, valkey: ValkeyServer) -> None:
    """By replicas that start with the log full, and by one that evicted: from every id, everything after it."""
    async with running(items, valkey) as one:
        whole = LocalStream(one, "ann", ["t"])
        await whole.ready()
        for _ in range(20):
            insert(items, 25)
            await one.publish("other", {"n": 1})
        await whole.settled()
    async with running(items, valkey, ring_bytes="64KB") as two, running(items, valkey, ring_bytes="64KB") as three:
        for number in (1, 2, 24, 25, 26, 77, 250, 499):
            for cast in (two, three):
                assert len(cast.hub.ring) < 300
                stream = LocalStream(cast, "ann", ["t"], last_event_id=position_of(whole, number))
                await stream.until(lambda: numbers(stream)[-1:] == [500])  # noqa: B023  # awaited at once
                assert numbers(stream) == list(range(number + 1, 501))
                assert names(stream) == ["rowcast.ready"]
                stream.close()
        assert two.hub.readback.pages
        stream = LocalStream(two, "ann", ["t"], last_event_id=position_of(whole, 50))
        insert(items, 100)
        await stream.until(lambda: numbers(stream)[-1:] == [600])
        assert numbers(stream) == list(range(51, 601))


async def test_older_than_the_log_is_a_reset(items: str, valkey: ValkeyServer) -> None:
    async with running(items, valkey) as one:
        whole = LocalStream(one, "ann", ["t"])
        await whole.ready()
        for _ in range(5):
            insert(items, 10)
            await whole.settled()
        with valkey.client() as client:
            client.xtrim(STREAM, maxlen=2, approximate=False)
    async with running(items, valkey, ring_bytes="64KB") as two:
        stream = LocalStream(two, "ann", ["t"], last_event_id=position_of(whole, 3))
        await stream.until(lambda: "rowcast.reset" in names(stream))
        assert [data["reason"] for data in stream.events("rowcast.reset")] == ["position_expired"]
        insert(items, 1)
        await stream.until(lambda: numbers(stream) == [51])


async def test_ids_hold_when_every_replica_and_the_reader_of_the_wal_are_others(
    items: str, valkey: ValkeyServer
) -> None:
    """All replicas stop; others start, and another one reads the WAL: a client goes on as if nothing had been."""
    position, seen = None, []
    for _ in range(3):
        async with running(items, valkey) as one, running(items, valkey) as two:
            leading = [cast for cast in (one, two) if (leader := log_of(cast).leader) and leader.leading]
            stream = LocalStream(two, "ann", ["t"], last_event_id=position)
            insert(items, 5)
            await stream.settled()
            # The reader of the WAL hands over in the middle, too.
            with psycopg.connect(items, autocommit=True) as admin:
                admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
            insert(items, 5)
            await stream.until(lambda: numbers(stream)[-1:] == committed(items)[-1:])  # noqa: B023  # awaited at once
            assert len(leading) <= 1
            assert names(stream) == ["rowcast.ready"]
            seen += numbers(stream)
            position = stream.position
        insert(items, 5)
    assert seen == list(range(1, len(seen) + 1))
    assert seen == committed(items)[:-5]


async def test_a_leader_that_can_not_append_says_so_until_it_can(
    items: str, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also between its attempts, when it leads no more, and on a database where nothing happens."""
    monkeypatch.setattr(leader, "HEARTBEAT", 0.3)
    async with running(items, valkey) as cast:
        stream = LocalStream(cast, "ann", ["t"])
        await stream.ready()
        with valkey.client() as client:
            client.config_set("maxmemory", "1")
            async with asyncio.timeout(30):
                while cast.log.state().ok:
                    await asyncio.sleep(0.01)
            said = set()
            async with asyncio.timeout(30):
                # Two elections that it wins, and what it says all the while.
                for leads in (True, False, True, False):
                    while log_of(cast).leader.leading is not leads:  # type: ignore[union-attr]  # there is one
                        said.add(cast.log.state().detail)
                        await asyncio.sleep(0.01)
            assert len(said) == 1
            assert "maxmemory" in said.pop()
            client.config_set("maxmemory", "0")
            async with asyncio.timeout(30):
                while not cast.log.state().ok:
                    await asyncio.sleep(0.01)


async def test_a_replica_without_postgres_begins_the_log_before_it_takes_streams(valkey: ValkeyServer) -> None:
    async with running(None, valkey) as cast:
        stream = LocalStream(cast, "u")
        await stream.ready()
        assert stream.position.partition(":")[0] == cast.hub.epoch != ""
        resumed = LocalStream(cast, "u", last_event_id=stream.position)
        await resumed.ready()
        assert not resumed.events("rowcast.reset")


async def test_whoever_takes_over_reads_on_from_the_end_of_the_log(
    items: str, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not from the slot, which is `redo` behind; and that is not confirmed by it."""
    query = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'rowcast'"
    started: list[int] = []
    start = WalSession.start

    async def spy(session: WalSession, slot: str, lsn: int, *rest: Any, **more: Any) -> None:
        started.append(lsn)
        await start(session, slot, lsn, *rest, **more)

    monkeypatch.setattr(WalSession, "start", spy)
    with psycopg.connect(items, autocommit=True) as admin:
        async with running(items, valkey, redo="1h") as one:
            stream = LocalStream(one, "ann", ["t"])
            await stream.ready()
            confirmed = admin.execute(query).fetchone()
            insert(items, 50)
            await stream.settled()
            seen = one.hub.head
        async with running(items, valkey, redo="1h") as two:
            stream = LocalStream(two, "ann", ["t"])
            await stream.ready()
            insert(items, 3)
            await stream.settled()
            assert numbers(stream) == [51, 52, 53]
        assert started[-1] >= seen[0]
        assert admin.execute(query).fetchone() == confirmed


async def test_its_own_end_is_no_trouble_of_the_log(
    items: str, valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(items, valkey) as cast:
        await cast.publish("t", {"n": 1})
        caplog.clear()
        log = log_of(cast)
        await log.close()
        await asyncio.sleep(0)
    assert not [record.message for record in caplog.records if record.levelname == "WARNING"]
