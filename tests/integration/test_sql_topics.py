"""SQL rules ask for many users at once, and mean the same as when they ask for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from rowcast import Rowcast
from rowcast.core.rules import SqlRule
from rowcast.sql_topics import SqlTopics
from rowcast.testing.local import LocalStream

SECRET = "0123456789abcdef0123456789abcdef"

Connection = psycopg.AsyncConnection[tuple[object, ...]]


class Counting(psycopg.AsyncConnection[tuple[object, ...]]):
    """Counts what is asked."""

    asked = 0

    async def execute(self, *args: object, **kwargs: object) -> psycopg.AsyncCursor[tuple[object, ...]]:  # type: ignore[override]
        type(self).asked += 1
        return await super().execute(*args, **kwargs)  # type: ignore[arg-type]


@pytest.fixture
async def connection(database: str) -> AsyncIterator[Counting]:
    async with await Counting.connect(database) as connection:
        await connection.execute("CREATE TABLE likes (user_id text, thing text)")
        await connection.execute("CREATE TABLE numbered (id int, padded char(5), thing text)")
        await connection.execute("INSERT INTO likes SELECT 'u' || n, 't' || n % 7 FROM generate_series(1, 2000) n")
        await connection.execute("INSERT INTO likes VALUES ('u1', 'x'), ('u1', 'x'), ('u2', NULL), ('u3', '')")
        await connection.execute("INSERT INTO numbered SELECT n, n, 't' || n FROM generate_series(1, 100) n")
        Counting.asked = 0
        yield connection


async def ask(connection: Connection, sql: str, users: list[str]) -> tuple[dict[str, frozenset[str]], list[str]]:
    """What a rule gives, and that it is what it gives when each is asked alone; with the users for whom it failed."""
    failures: list[str] = []
    rule = SqlRule(0, sql, {}, "rule")
    found = await SqlTopics(lambda rule, error: failures.append(str(error))).read(connection, rule, users)
    alone = SqlTopics(lambda rule, error: None)
    alone._queries[0] = None
    assert found == await alone.read(connection, rule, users)
    return found, failures


async def test_many_users_are_one_query(connection: Counting) -> None:
    users = [f"u{number}" for number in range(1, 2001)]
    topics = SqlTopics(lambda rule, error: None)
    rule = SqlRule(0, "SELECT 'a:' || thing FROM likes WHERE user_id = %(user)s", {}, "rule")
    found = await topics.read(connection, rule, users)
    assert found["u1"] == {"a:t1", "a:x"}
    assert found["u2"] == {"a:t2"}
    assert len(found) == 2000
    assert Counting.asked < 15
    Counting.asked = 0
    await topics.read(connection, rule, users)
    assert Counting.asked < 5


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT thing FROM likes WHERE user_id = %(user)s ORDER BY 1 LIMIT 1;",
        "WITH mine AS (SELECT * FROM likes WHERE user_id = %(user)s) SELECT thing FROM mine -- all of them",
        "SELECT thing FROM likes WHERE user_id LIKE %(user)s || '%%'",
        "SELECT 'own:' || %(user)s || count(*) FROM likes WHERE user_id = %(user)s",
        "SELECT max(thing), min(thing) FROM likes WHERE user_id = %(user)s GROUP BY user_id",
        "SELECT 'a' UNION ALL SELECT thing FROM likes WHERE user_id = %(user)s",
        "VALUES (%(user)s), ('b')",
        "SELECT 'everybody'",
        "SELECT thing FROM numbered WHERE id = %(user)s",
        "SELECT thing FROM numbered WHERE padded = %(user)s",
        "SELECT thing FROM numbered WHERE id::text = %(user)s",
        "SELECT thing FROM numbered ORDER BY id LIMIT %(user)s",
        "SELECT max(%(user)s)",
        "SELECT unnest(ARRAY[%(user)s, 'c'])",
        "SELECT no_such_column FROM likes WHERE user_id = %(user)s",
    ],
)
async def test_it_means_the_same(connection: Counting, sql: str) -> None:
    await ask(connection, sql, ["u1", "u2", "u3", "1", "2", "02", "3  ", "nobody", "Ünï'\\", '{"', ""])


async def test_who_fails_holds_up_nobody(connection: Counting) -> None:
    users = [str(number) for number in range(1, 101)]
    users[40], users[77] = "forty", "no"
    found, failures = await ask(connection, "SELECT thing FROM numbered WHERE id = %(user)s", users)
    assert len(failures) == 2
    assert found["forty"] == frozenset()
    assert found["42"] == {"t42"}


async def test_one_change_concerns_thousands_and_the_others_go_on(database: str) -> None:
    """A change after which 4,900 users are read anew: each gets what it brings, and others go on."""
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("CREATE TABLE members (user_id text PRIMARY KEY, team text)")
        admin.execute("CREATE TABLE items (id bigserial PRIMARY KEY)")
        admin.execute("INSERT INTO members SELECT 'u' || n, 'red' FROM generate_series(1, 4900) n")
        cast = Rowcast(  # type: ignore[call-arg]
            postgres=database,
            auth=SECRET,
            route=[{"table": "items", "topic": "items"}],
            subscription=[
                {
                    "sql": "SELECT 'team:' || team FROM members WHERE user_id = %(user)s",
                    "depends_on": {"members": "{user_id}"},
                }
            ],
        )
        async with cast.lifespan():
            streams = [LocalStream(cast, f"u{number}") for number in range(1, 4901)]
            other = LocalStream(cast, "other", ["items"])
            for stream in (*streams, other):
                await stream.ready()
            assert streams[0].events("rowcast.ready")[0]["topics"] == ["team:red"]
            admin.execute("UPDATE members SET team = 'blue'")
            await asyncio.to_thread(admin.execute, "INSERT INTO items DEFAULT VALUES")
            await other.until(lambda: len(other.records()) == 1)
            for stream in streams:
                await stream.until(lambda: bool(stream.events("rowcast.subscriptions")))  # noqa: B023  # awaited at once
                assert stream.events("rowcast.subscriptions")[-1]["topics"] == ["team:blue"]
