"""Invalidation for users without a stream: on a real Postgres, and a real Valkey."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psycopg
import pytest

from rowcast import Rowcast, absent
from rowcast.core.entry import Batch
from rowcast.core.position import ORIGIN
from rowcast.errors import ConfigError
from rowcast.hub import Hub
from rowcast.testing.valkey import ValkeyServer

SECRET = "0123456789abcdef0123456789abcdef"
SUBS = {"table": "subs", "user": "{usr}", "topics": ["{topic}"], "when": "{enabled}", "users": "all"}
ITEMS = {"table": "items", "topic": "item:{name}"}


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as running:
        yield running


@pytest.fixture
def valkey(server: ValkeyServer) -> ValkeyServer:
    with contextlib.closing(server.client()) as client:
        client.flushall()
    return server


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absent, "RETRY", 0.1)
    monkeypatch.setattr(absent, "LOOK", 0.05)


@pytest.fixture
def sql(database: str) -> Iterator[Any]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE subs (id int PRIMARY KEY, usr text, topic text, enabled bool DEFAULT true)")
        connection.execute("CREATE TABLE items (id serial PRIMARY KEY, name text)")
        yield connection.execute


def make(database: str, valkey: ValkeyServer, *rules: dict[str, Any], **sections: Any) -> Rowcast:
    return Rowcast(
        postgres=database,
        cache={"invalidate": ["c:{user}", "d:{user}"], "url": valkey.url},
        auth=SECRET,
        api="k",
        route=[ITEMS],
        subscription=list(rules or [SUBS]),
        **sections,
    )


@contextlib.asynccontextmanager
async def running(
    database: str, valkey: ValkeyServer, *rules: dict[str, Any], **sections: Any
) -> AsyncIterator[Rowcast]:
    cast = make(database, valkey, *rules, **sections)
    async with cast.lifespan():
        await until(lambda: absentees(cast).audience.known)
        yield cast


def absentees(cast: Rowcast) -> absent.Absentees:
    assert cast.hub.absent is not None
    return cast.hub.absent


def fill(valkey: ValkeyServer, *users: str) -> None:
    with contextlib.closing(valkey.client()) as client:
        client.mset({f"{kind}:{user}": "old" for user in users for kind in "cd"})


def left(valkey: ValkeyServer) -> set[str]:
    """The users of whom a key is left."""
    with contextlib.closing(valkey.client()) as client:
        return {key.decode()[2:] for key in client.keys("?:*")}


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


async def idle(cast: Rowcast) -> None:
    """Wait until all that was committed is dispatched, and nothing is due."""
    await cast.hub.passed(await cast.log.head())
    await until(lambda: not absentees(cast).waiting)


async def test_the_keys_of_all_subscribed_users_go(database: str, sql: Any, valkey: ValkeyServer) -> None:
    sql("INSERT INTO subs VALUES (1, 'ann', 'item:a'), (2, 'bob', 'item:a'), (3, 'cat', 'item:b'), (4, NULL, 'item:a')")
    sql("INSERT INTO subs VALUES (5, 'off', 'item:a', false)")
    async with running(database, valkey) as cast:
        fill(valkey, "ann", "bob", "cat", "off", "new")
        sql("INSERT INTO items (name) VALUES ('a')")
        await until(lambda: left(valkey) == {"cat", "off", "new"})
        # As it is from here on: of another user, another topic, switched on, and gone.
        fill(valkey, "ann", "bob")
        sql("UPDATE subs SET usr = 'new' WHERE id = 1")
        sql("UPDATE subs SET topic = 'item:c' WHERE id = 2")
        sql("UPDATE subs SET enabled = true WHERE id = 5")
        sql("DELETE FROM subs WHERE id = 3")
        sql("INSERT INTO items (name) VALUES ('a'), ('b')")
        await until(lambda: left(valkey) == {"ann", "bob", "cat"})
        sql("INSERT INTO items (name) VALUES ('c')")
        await until(lambda: left(valkey) == {"ann", "cat"})
        # A user's own topic names them.
        await cast.publish("user:cat", 1)
        await until(lambda: left(valkey) == {"ann"})
        # What is sent to all topics that begin so.
        fill(valkey, "bob", "new")
        sql("TRUNCATE items")
        await until(lambda: left(valkey) == {"ann"})
        # Nobody is subscribed any more.
        fill(valkey, "bob", "new")
        sql("TRUNCATE subs")
        sql("INSERT INTO items (name) VALUES ('a'), ('c')")
        await idle(cast)
        assert left(valkey) == {"ann", "bob", "new"}
        assert 'rowcast_cache_absent_deletions_total{outcome="done"}' in cast.metrics.expose().decode()


async def test_a_value_that_an_update_leaves_out_is_remembered(database: str, sql: Any, valkey: ValkeyServer) -> None:
    sql("CREATE TABLE big (id int PRIMARY KEY, usr text, config jsonb, on_ bool)")
    sql("ALTER TABLE big ALTER config SET STORAGE EXTERNAL")
    sql(
        "INSERT INTO big SELECT 1, 'ann', jsonb_build_object('t', 'item:a', 'pad', repeat('x', 9000)), false"
        " UNION ALL SELECT 2, 'bob', jsonb_build_object('t', 'item:a', 'pad', repeat('x', 9000)), true"
    )
    rule = {"table": "big", "user": "{usr}", "topics": ["{config.t}"], "when": "{on_}", "users": "all"}
    async with running(database, valkey, rule) as cast:
        fill(valkey, "ann", "bob")
        sql("UPDATE big SET on_ = true WHERE id = 1")
        sql("UPDATE big SET on_ = false WHERE id = 2")
        sql("INSERT INTO items (name) VALUES ('a')")
        await until(lambda: left(valkey) == {"bob"})
        assert not absentees(cast).audience.stale


async def test_a_table_without_a_key(database: str, sql: Any, valkey: ValkeyServer) -> None:
    sql("CREATE TABLE loose (usr text, topic text)")
    sql("ALTER TABLE loose REPLICA IDENTITY FULL")
    sql("INSERT INTO loose VALUES ('ann', 'item:a'), ('ann', 'item:a')")
    rule = {"table": "loose", "user": "{usr}", "topics": ["{topic}"], "users": "all"}
    async with running(database, valkey, rule) as cast:
        for count in (2, 1):
            fill(valkey, "ann")
            sql("INSERT INTO items (name) VALUES ('a')")
            await until(lambda: not left(valkey))
            await cast.hub.passed(await cast.log.head())
            sql("DELETE FROM loose WHERE ctid = (SELECT ctid FROM loose LIMIT 1)")
            assert len(absentees(cast).audience) == 1, count
        fill(valkey, "ann")
        sql("INSERT INTO items (name) VALUES ('a')")
        await idle(cast)
        assert left(valkey) == {"ann"}


async def test_reading_joins_the_log_exactly(database: str, sql: Any, valkey: ValkeyServer) -> None:
    """Many readings beside concurrent writers: what is known at the end is what stands in the table."""
    rng = random.Random(7)
    writing = True

    async def write(number: int) -> None:
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            while writing:
                async with connection.transaction(force_rollback=rng.random() < 0.1):
                    for _ in range(rng.randrange(1, 4)):
                        row = rng.randrange(40) * 4 + number  # of its own: no deadlocks
                        kind = rng.choice(["insert", "insert", "update", "delete", "rekey"])
                        values = [row, f"u{rng.randrange(8)}", f"t{rng.randrange(8)}", rng.random() < 0.8]
                        if kind == "insert":
                            await connection.execute(
                                "INSERT INTO subs VALUES (%s, %s, %s, %s) ON CONFLICT (id) DO NOTHING", values
                            )
                        elif kind == "update":
                            await connection.execute(
                                "UPDATE subs SET usr = %s, topic = %s, enabled = %s WHERE id = %s",
                                [*values[1:], row],
                            )
                        elif kind == "delete":
                            await connection.execute("DELETE FROM subs WHERE id = %s", [row])
                        else:
                            await connection.execute(
                                "UPDATE subs SET id = %s WHERE id = %s AND NOT EXISTS (SELECT FROM subs WHERE id = %s)",
                                [row + 160, row, row + 160],
                            )
                    await asyncio.sleep(rng.random() * 0.01)

    async with running(database, valkey) as cast:
        tasks = [asyncio.create_task(write(number)) for number in range(4)]
        audience = absentees(cast).audience
        for round_ in range(12):
            for _ in range(3):
                audience.restart()
                await absentees(cast)._load()
                await asyncio.sleep(rng.random() * 0.05)
            if round_ == 11:
                writing = False
                await asyncio.gather(*tasks)
        await cast.hub.passed(await cast.log.head())
        truth = defaultdict(set)
        for user, topic in sql("SELECT usr, topic FROM subs WHERE enabled"):
            truth[topic].add(user)
        assert truth
        assert {topic: set(audience.users(topic)) for topic in (f"t{n}" for n in range(8))} == {
            f"t{n}": truth[f"t{n}"] for n in range(8)
        }
        rows = sql("SELECT count(*) FROM subs WHERE enabled").fetchone()
        assert len(audience) == rows[0]


async def test_a_large_topic_is_gone_through_slowly_and_does_not_hold_up_the_small_ones(
    database: str, sql: Any, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql("INSERT INTO subs SELECT i, 'u' || i, 'item:large' FROM generate_series(1, 3000) i")
    sql("INSERT INTO subs VALUES (0, 'ann', 'item:small')")
    async with running(database, valkey) as cast:
        absentees_ = absentees(cast)
        rounds: list[set[str]] = []
        unlink = absentees_._unlink

        async def noted(users: dict[str, None]) -> None:
            rounds.append(set(users))
            await unlink(users)

        monkeypatch.setattr(absentees_, "_unlink", noted)
        fill(valkey, *(f"u{i}" for i in range(1, 3001)), "ann")
        sql("INSERT INTO items (name) VALUES ('large')")
        await until(lambda: bool(rounds))
        sql("INSERT INTO items (name) VALUES ('small')")
        await until(lambda: not left(valkey))
        assert max(map(len, rounds)) <= absent.USERS
        small = next(number for number, users in enumerate(rounds) if "ann" in users)
        assert small < len(rounds) - 1, "the small topic was not the last"
        # Once more while it is gone through: everybody is deleted for after that, also those who were before.
        rounds.clear()
        sql("INSERT INTO items (name) VALUES ('large')")
        await until(lambda: len(rounds) == 2)
        early = rounds[0]
        fill(valkey, *early)
        sql("INSERT INTO items (name) VALUES ('large')")
        await until(lambda: not left(valkey))


async def test_a_burst_costs_one_deletion(
    database: str, sql: Any, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(absent, "SPACING", 0.5)
    sql("INSERT INTO subs VALUES (1, 'ann', 'item:a')")
    async with running(database, valkey) as cast:
        fill(valkey, "ann")
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(*(cast.publish("item:a", number) for number in range(200)))
        await idle(cast)
        assert not left(valkey)
        # One at once, and one in every pause that the burst was long, or just touched.
        assert absentees(cast).deletions <= 2 + (loop.time() - began) / absent.SPACING


async def test_a_server_that_is_away_is_made_good(database: str, sql: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absent, "AWAY_PAUSE", 0.1)
    sql("INSERT INTO subs VALUES (1, 'ann', 'item:a'), (2, 'bob', 'item:b')")
    with ValkeyServer() as valkey:
        async with running(database, valkey) as cast:
            fill(valkey, "ann", "bob", "cat")
            valkey.pause()
            sql("INSERT INTO items (name) VALUES ('a'), ('b')")
            await until(lambda: absentees(cast).failures > 0)
            valkey.resume()
            await until(lambda: left(valkey) == {"cat"})


async def test_a_gap_in_the_log_concerns_everybody(database: str, sql: Any, valkey: ValkeyServer) -> None:
    sql("INSERT INTO subs SELECT i, 'u' || i, 't' || i FROM generate_series(1, 600) i")
    async with running(database, valkey) as cast:
        fill(valkey, *(f"u{i}" for i in range(1, 601)), "stranger")
        cast.hub.handle(Batch(cast.hub.epoch, [], cast.hub.head, reset="gap"))
        await until(lambda: left(valkey) == {"stranger"})


async def test_so_do_more_topics_than_are_remembered(
    database: str, sql: Any, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(absent, "MAX_TOPICS", 10)
    sql("INSERT INTO subs VALUES (1, 'ann', 'item:a'), (2, 'bob', 'item:b')")
    async with running(database, valkey) as cast:
        fill(valkey, "ann", "bob", "stranger")
        for number in range(11):
            absentees(cast).note(f"t{number}")
        await until(lambda: left(valkey) == {"stranger"})


async def test_who_loses_a_topic_that_is_due_had_it(
    database: str, sql: Any, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql("INSERT INTO subs VALUES (1, 'ann', 'item:a'), (2, 'bob', 'item:b'), (3, 'cat', 'item:c')")
    async with running(database, valkey) as cast:
        fill(valkey, "ann", "bob", "cat")
        with monkeypatch.context() as patch:
            patch.setattr(absentees(cast), "_round", dict)
            sql("INSERT INTO items (name) VALUES ('a')")
            sql("DELETE FROM subs WHERE id = 1")
            sql("INSERT INTO items (name) VALUES ('b')")
            sql("TRUNCATE subs")
            await cast.hub.passed(await cast.log.head())
            assert not list(absentees(cast).audience.users("item:b"))
        await until(lambda: left(valkey) == {"cat"})


async def test_with_a_redis_log_the_elected_replica_does_it_and_the_next_one_goes_on(
    database: str, sql: Any, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql("INSERT INTO subs VALUES (1, 'ann', 'item:a'), (2, 'bob', 'item:b')")
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(running(database, valkey, log=valkey.url))
        second = make(database, valkey, log=valkey.url)
        async with second.lifespan():
            fill(valkey, "ann", "bob", "cat")
            sql("INSERT INTO items (name) VALUES ('a')")
            await until(lambda: left(valkey) == {"bob", "cat"})
            assert not absentees(second).audience.known
            assert absentees(second).deletions == 0
            # The elected one ends before it comes to this.
            monkeypatch.setattr(absentees(first), "_round", dict)
            fill(valkey, "ann")
            sql("INSERT INTO items (name) VALUES ('b')")
            await second.hub.passed(await second.log.head())
            assert left(valkey) == {"ann", "bob", "cat"}
            await stack.aclose()
            await until(lambda: left(valkey) == {"cat"})


async def test_a_replica_that_is_not_elected_forgets_in_time(
    database: str, sql: Any, valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(database, valkey) as cast:
        await idle(cast)
        monkeypatch.setattr(absent, "WINDOW", 0.2)
        absentees(cast)._elected = lambda: False
        await until(lambda: not absentees(cast).audience.known)
        absentees(cast).note("t")
        absentees(cast).note_matching("u")
        assert absentees(cast).waiting == 2
        await until(lambda: not absentees(cast).waiting)
        absentees(cast)._elected = lambda: True
        await until(lambda: absentees(cast).audience.known)


async def test_a_column_that_was_away(database: str, sql: Any, valkey: ValkeyServer) -> None:
    sql("INSERT INTO subs VALUES (1, 'ann', 'item:a'), (2, 'bob', 'item:b')")
    async with running(database, valkey) as cast:
        sql("ALTER TABLE subs RENAME topic TO subject")
        sql("INSERT INTO subs VALUES (3, 'cat', 'item:c')")
        await cast.hub.passed(await cast.log.head())
        assert not list(absentees(cast).audience.users("item:a"))
        sql("ALTER TABLE subs RENAME subject TO topic")
        sql("INSERT INTO subs VALUES (4, 'dan', 'item:d')")
        await until(lambda: list(absentees(cast).audience.users("item:c")) == ["cat"])
        fill(valkey, "ann", "cat", "dan", "stranger")
        sql("INSERT INTO items (name) VALUES ('a'), ('c'), ('d')")
        await until(lambda: left(valkey) == {"stranger"})


async def test_a_rule_in_python(database: str, sql: Any, valkey: ValkeyServer) -> None:
    sql("INSERT INTO subs VALUES (1, 'ann', 'a'), (2, 'bob', 'b')")
    cast = Rowcast(
        postgres=database, cache={"invalidate": ["c:{user}", "d:{user}"], "url": valkey.url}, auth=SECRET, route=[ITEMS]
    )

    @cast.subscriptions("subs", user="usr", users="all")
    def subs(row: dict[str, Any]) -> list[str]:
        return [f"item:{row['topic']}"]

    async with cast.lifespan():
        fill(valkey, "ann", "bob")
        await until(lambda: absentees(cast).audience.known)
        sql("INSERT INTO items (name) VALUES ('a')")
        await until(lambda: left(valkey) == {"bob"})


async def test_without_the_option_nobody_else_is_deleted_for(database: str, sql: Any, valkey: ValkeyServer) -> None:
    sql("INSERT INTO subs VALUES (1, 'ann', 'item:a')")
    cast = make(database, valkey, {**SUBS, "users": "connected"})
    async with cast.lifespan():
        assert isinstance(cast.hub, Hub)
        assert cast.hub.absent is None
        assert cast.hub.head > ORIGIN


@pytest.mark.parametrize(
    ("section", "rule", "message"),
    [
        ({"invalidate": ["c:{user}"], "url": "redis://x"}, {"users": "everybody"}, "'connected' or 'all'"),
        ({}, {}, r'users = "all" deletes cached keys: say which, by \[cache\] invalidate'),
        (
            {"invalidate": ["c:{user}"], "url": "redis://x"},
            {"table": None, "user": None, "topics": None, "when": None, "sql": "SELECT %(user)s", "depends_on": {}},
            r"needs a subscription of rows",
        ),
    ],
)
def test_what_is_wrong_is_said(section: dict[str, Any], rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Rowcast(postgres="postgresql://x", cache=section, auth=SECRET, subscription=[{**SUBS, **rule}])


def test_what_is_wrong_in_python_is_said() -> None:
    with pytest.raises(ConfigError, match='users="all" deletes cached keys'):
        Rowcast(postgres="postgresql://x", auth=SECRET).subscriptions("subs", user="usr", users="all")
