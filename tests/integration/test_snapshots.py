"""Snapshots of topics on a real Postgres: what the rows look like, and that the tail follows without a seam."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

import rowcast.snapshots
from rowcast import ConfigError, Rowcast, SetupError
from rowcast.auth.jwt import mint
from rowcast.client import EventStream
from rowcast.core.position import parse_position
from rowcast.testing.local import LocalStream
from rowcast.testing.postgres import PostgresServer
from rowcast.testing.rows import Rows
from rowcast.testing.serving import serving

SECRET = "0123456789abcdef0123456789abcdef"

TRADES = """
CREATE TABLE trades (id int PRIMARY KEY, symbol text NOT NULL, price numeric NOT NULL DEFAULT 1, note text,
                     twice numeric GENERATED ALWAYS AS (price * 2) STORED);
ALTER TABLE trades REPLICA IDENTITY FULL;
"""


def make(database: str, *routes: dict[str, Any], **sections: Any) -> Rowcast:
    chosen = list(routes) or [{"table": "trades", "topic": "finance:{symbol}", "snapshot": True}]
    return Rowcast(**({"postgres": database, "auth": SECRET, "route": chosen} | sections))


@contextmanager
def admin(database: str, *statements: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())
        yield connection


async def whole(stream: LocalStream, *topics: str) -> Rows:
    """Wait until the snapshots of the topics are there, and the stream has ids again."""

    def done() -> bool:
        table = Rows().take(stream.blocks)
        return table.complete >= set(topics) and not parse_position(stream.position).owed

    await stream.until(done)
    return Rows().take(stream.blocks)


async def test_the_rows_are_written_as_changes_are(database: str) -> None:
    columns = "id int PRIMARY KEY, t text, n numeric, b bigint, at timestamptz, j jsonb, a text[], d date, f float8"
    with admin(
        database,
        f"CREATE TABLE things ({columns})",
        "INSERT INTO things VALUES (1, 'x', 1.50, 9007199254740993, '2026-01-02 03:04:05+02', '{\"a\": 1.10}', '{p,q}',"
        " '2026-01-02', 0.1), (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)",
    ) as connection:
        cast = make(database, {"table": "things", "topic": "all", "snapshot": True})
        async with cast.lifespan():
            stream = LocalStream(cast, "ann", ["all"], snapshot=True)
            table = await whole(stream, "all")
            connection.execute("UPDATE things SET t = t")
            await stream.settled()
    (page,) = table.pages
    assert page["key"] == ["id"]
    assert page["metadata"] == {"table_schema": "public", "table_name": "things"}
    assert page["rows"] == stream.records()
    assert page["rows"][0]["b"] == "9007199254740993"


async def test_generated_and_unpublished_columns_are_in_neither(database: str) -> None:
    with admin(
        database,
        TRADES,
        "CREATE PUBLICATION rowcast FOR TABLE trades (id, symbol, price)",
        "ALTER TABLE trades REPLICA IDENTITY DEFAULT",
        "INSERT INTO trades VALUES (1, 'AAPL', 2, 'secret')",
    ) as connection:
        cast = make(database)
        async with cast.lifespan():
            stream = LocalStream(cast, "ann", ["finance:AAPL"], snapshot=True)
            table = await whole(stream, "finance:AAPL")
            connection.execute("UPDATE trades SET price = 2")
            await stream.settled()
    assert table.rows["finance:AAPL"][1] == {"id": 1, "symbol": "AAPL", "price": "2"} == stream.records()[0]


async def test_a_row_that_the_publication_filters_is_in_no_snapshot(database: str) -> None:
    with admin(
        database,
        TRADES,
        "CREATE PUBLICATION rowcast FOR TABLE trades WHERE (note IS DISTINCT FROM '100%s')",
        "INSERT INTO trades VALUES (1, 'AAPL', 2, '100%s'), (2, 'AAPL', 2, 'b')",
    ):
        cast = make(database)
        async with cast.lifespan():
            table = await whole(LocalStream(cast, "ann", ["finance:AAPL"], snapshot=True), "finance:AAPL")
    assert list(table.rows["finance:AAPL"]) == [2]


async def test_only_the_topics_of_the_user_and_only_rows_for_which_the_route_holds(database: str) -> None:
    with admin(
        database,
        TRADES,
        "INSERT INTO trades VALUES (1, 'AAPL', 1), (2, 'AAPL', -1), (3, 'MSFT', 1), (4, 'aapl', 1)",
    ):
        route = {"table": "trades", "topic": "finance:{symbol}", "when": "{price} > 0", "columns": ["id"]}
        cast = make(database, route | {"snapshot": True})
        async with cast.lifespan():
            stream = LocalStream(cast, "ann", ["finance:AAPL", "finance:NONE", "else"], snapshot=True)
            table = await whole(stream, "finance:AAPL", "finance:NONE")
    assert table.rows == {"finance:AAPL": {1: {"id": 1}}, "finance:NONE": {}}
    ready = stream.blocks[0]
    assert ready.event == "rowcast.ready"
    assert parse_position(ready.id).owed
    assert [block.event for block in stream.blocks if block.id] == ["rowcast.ready", "message"]


async def test_without_asking_there_is_no_snapshot(database: str) -> None:
    with admin(database, TRADES, "INSERT INTO trades VALUES (1, 'AAPL', 1)"):
        cast = make(database)
        async with cast.lifespan():
            stream = LocalStream(cast, "ann", ["finance:AAPL"])
            await stream.ready()
            await stream.settled()
            assert [block.event for block in stream.blocks] == ["rowcast.ready"]
            resumed = LocalStream(cast, "ann", ["finance:AAPL"], last_event_id=stream.position, snapshot=True)
            await resumed.ready()
            await resumed.settled()
            assert not resumed.events("rowcast.snapshot")


async def test_a_position_that_is_gone_is_answered_with_a_snapshot(database: str) -> None:
    with admin(database, TRADES, "INSERT INTO trades VALUES (1, 'AAPL', 1)"):
        cast = make(database)
        async with cast.lifespan():
            stream = LocalStream(cast, "ann", ["finance:AAPL"], last_event_id="abcd:1-0", snapshot=True)
            table = await whole(stream, "finance:AAPL")
    assert [block.event for block in stream.blocks][:3] == ["rowcast.ready", "rowcast.reset", "rowcast.snapshot"]
    assert list(table.rows["finance:AAPL"]) == [1]


async def test_large_results_come_in_pages(database: str) -> None:
    with admin(
        database,
        TRADES,
        "INSERT INTO trades (id, symbol, note) SELECT i, 'AAPL', repeat('x', 500) FROM generate_series(1, 2000) i",
        "INSERT INTO trades (id, symbol, note) VALUES (0, 'AAPL', repeat('y', 300000))",
    ):
        cast = make(database)
        async with cast.lifespan():
            stream = LocalStream(cast, "ann", ["finance:AAPL"], snapshot=True)
            table = await whole(stream, "finance:AAPL")
    assert len(table.rows["finance:AAPL"]) == 2001
    assert len(table.pages) > 15
    assert [page["first"] for page in table.pages] == [True] + [False] * (len(table.pages) - 1)
    assert [page["last"] for page in table.pages] == [False] * (len(table.pages) - 1) + [True]
    assert all(len(str(page)) < 70_000 for page in table.pages)
    (cut,) = [page["rows"][number] for page in table.pages for number in page.get("truncated", [])]
    assert cut == {"id": 0}


async def test_a_topic_gained_by_a_live_stream_comes_with_its_rows(database: str) -> None:
    subs = "CREATE TABLE subs (id int PRIMARY KEY, usr text, symbol text)"
    rule = {"table": "subs", "user": "{usr}", "topics": ["finance:{symbol}"]}
    with admin(
        database,
        TRADES,
        subs,
        "INSERT INTO trades VALUES (1, 'AAPL'), (2, 'MSFT')",
        "INSERT INTO subs VALUES (1, 'ann', 'AAPL')",
    ) as connection:
        cast = make(database, subscription=[rule])
        async with cast.lifespan():
            stream = LocalStream(cast, "ann", snapshot=True)
            table = await whole(stream, "finance:AAPL")
            assert table.rows == {"finance:AAPL": {1: table.pages[0]["rows"][0]}}
            connection.execute("INSERT INTO subs VALUES (2, 'ann', 'MSFT')")
            await stream.until(lambda: "finance:MSFT" in Rows().take(stream.blocks).complete)
            connection.execute("INSERT INTO trades VALUES (3, 'MSFT'), (4, 'AAPL')")
            await stream.settled()
            table = Rows().take(stream.blocks)
            assert {topic: sorted(rows) for topic, rows in table.rows.items()} == {
                "finance:AAPL": [1, 4],
                "finance:MSFT": [2, 3],
            }
            assert [page["topic"] for page in table.pages] == ["finance:AAPL", "finance:MSFT"]


async def test_a_users_own_topic_has_its_rows(database: str) -> None:
    with admin(
        database,
        "CREATE TABLE notes (id int PRIMARY KEY, owner int, note text)",
        "INSERT INTO notes VALUES (1, 7, 'a'), (2, 8, 'b'), (3, NULL, 'c')",
    ):
        cast = make(database, {"table": "notes", "user": "{owner}", "snapshot": True})
        async with cast.lifespan():
            table = await whole(LocalStream(cast, "7", snapshot=True), "user:7")
            nobody = await whole(LocalStream(cast, "seven", snapshot=True))
    assert list(table.rows["user:7"]) == [1]
    assert nobody.rows == {}


SHAPES = {
    "{t}": {"a": [1]},
    "{t|urlencode}": {"a%2Fb%20c": [4], "a/b c": []},
    "{i}:{t}": {"2:b": [2], "1:a": [1], "1:b": []},
    "{t}:{t}": {"a:a": [1]},
    "{u}": {"00000000-0000-0000-0000-000000000002": [2], "x": []},
    "{b}": {"false": [2]},
    "{n}": {"1.50": [1], "1.5": [2]},
    "{d}": {"2026-01-02": [1]},
    "{mood}": {"sad": [2]},
    "{j.k}": {"x": [1, 3]},
    "{j.n}": {"5": [1]},
    "{j.l[*]}": {"p": [1, 2], "3": [2]},
    "{a[*]}": {"q": [1, 2]},
    "{t|upper}:{i}": {"A:1": [1], "a:1": []},
    "{t|fnv1a32}:{i}": {"e40c292c:1": [1]},
    "{j.k}:{t}": {"x:a": [1]},
    "all": {"": [1, 2, 3, 4]},
}


async def test_topics_are_turned_back_into_rows(database: str) -> None:
    with admin(
        database,
        "CREATE TYPE mood AS ENUM ('happy', 'sad')",
        "CREATE TABLE shapes (id int PRIMARY KEY, t varchar, i int, u uuid, b bool, n numeric, d date, mood mood,"
        " j jsonb, a text[])",
        """INSERT INTO shapes VALUES
           (1, 'a', 1, '00000000-0000-0000-0000-000000000001', true, 1.50, '2026-01-02', 'happy',
            '{"k": "x", "n": 5, "l": ["p", "q"]}', '{p,q}'),
           (2, 'b', 2, '00000000-0000-0000-0000-000000000002', false, 1.5, '2026-01-03', 'sad',
            '{"k": "y", "n": 5.0, "l": ["p", 3]}', '{q}'),
           (3, NULL, 1, NULL, NULL, NULL, NULL, NULL, '"{\\"k\\": \\"x\\"}"', '{}'),
           (4, 'a/b c', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)""",
    ):
        routes = [
            {"table": "shapes", "topic": f"s{number}:{template}", "snapshot": True}
            for number, template in enumerate(SHAPES)
        ]
        expected = {
            f"s{number}:{topic}" if topic else f"s{number}:all": rows
            for number, topics in enumerate(SHAPES.values())
            for topic, rows in topics.items()
        }
        cast = make(database, *routes)
        async with cast.lifespan():
            stream = LocalStream(cast, "ann", expected, snapshot=True)
            table = await whole(stream)
    assert {topic: sorted(table.rows.get(topic, ())) for topic in expected} == expected


@pytest.mark.parametrize("topic", ["t:{t|lower}", "t:{j.x.y[*].z}", "t:{a}", "t:{t|fnv1a32}", "t:{f}", "t:{txt.a}"])
async def test_a_topic_that_tells_no_rows_apart_is_refused_at_start(database: str, topic: str) -> None:
    with admin(database, "CREATE TABLE shapes (id int PRIMARY KEY, t text, j jsonb, a text[], f float8, txt text)"):
        with pytest.raises(ConfigError, match="snapshot = true needs a topic that tells rows apart"):
            await make(database, {"table": "shapes", "topic": topic, "snapshot": True}).start()


async def test_snapshots_need_a_database_and_the_right_to_read(database: str) -> None:
    route = {"table": "trades", "topic": "finance:{symbol}", "snapshot": True}
    with pytest.raises(ConfigError, match="set \\[postgres\\] url"):
        await Rowcast(auth=SECRET, webhooks={"sequin": {"secret": "s"}}, route=[route]).start()
    with admin(
        database,
        TRADES,
        "DROP ROLE IF EXISTS reader",
        "CREATE ROLE reader LOGIN REPLICATION",
        "CREATE PUBLICATION rowcast FOR TABLE trades",
    ):
        with pytest.raises(SetupError, match=r'GRANT SELECT ON "public"\."trades" TO "reader"'):
            await make(database.replace("postgres@", "reader@"), channels={"enabled": False}).start()


async def test_what_is_too_large_is_said(database: str) -> None:
    with admin(
        database,
        TRADES,
        "INSERT INTO trades (id, symbol, note) SELECT i, 'AAPL', md5(i::text) FROM generate_series(1, 12000) i",
        "INSERT INTO trades VALUES (0, 'MSFT', 1)",
    ):
        cast = make(database, postgres={"url": database, "snapshot_bytes": "1MB"})
        async with cast.lifespan():
            stream = LocalStream(cast, "ann", ["finance:AAPL", "finance:MSFT"], snapshot=True)
            table = await whole(stream, "finance:AAPL", "finance:MSFT")
    assert {page["topic"]: page.get("failed") for page in table.pages} == {
        "finance:AAPL": "too_large",
        "finance:MSFT": None,
    }


async def test_what_takes_too_long_is_said_and_does_not_cost_the_others_their_rows(database: str) -> None:
    slow = "CREATE TABLE slow (id int PRIMARY KEY)"
    with admin(database, TRADES, slow, "INSERT INTO trades VALUES (0, 'MSFT', 1)") as connection:
        routes = [
            {"table": "slow", "topic": "slow", "snapshot": True},
            {"table": "trades", "topic": "finance:{symbol}", "snapshot": True},
        ]
        cast = make(database, *routes, postgres={"url": database, "snapshot_timeout": "1s"})
        async with cast.lifespan():
            with connection.transaction():
                connection.execute("LOCK slow")
                stream = LocalStream(cast, "ann", ["slow", "finance:MSFT"], snapshot=True)
                table = await whole(stream, "slow", "finance:MSFT")
    assert {page["topic"]: page.get("failed") for page in table.pages} == {"slow": "timeout", "finance:MSFT": None}
    assert len(table.rows["finance:MSFT"]) == 1


async def test_streams_that_come_together_share_a_read(database: str) -> None:
    with admin(database, TRADES, "INSERT INTO trades VALUES (1, 'AAPL', 1)"):
        cast = make(database)
        async with cast.lifespan():
            streams = [LocalStream(cast, f"u{i}", ["finance:AAPL"], snapshot=True) for i in range(50)]
            for stream in streams:
                assert len((await whole(stream, "finance:AAPL")).rows["finance:AAPL"]) == 1
            assert cast.hub.snapshots.reads <= 2


async def test_while_a_synchronous_standby_is_away_no_topic_is_shown_that_it_concerns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rowcast.snapshots, "PATIENCE", 0.2)
    settings = {"synchronous_standby_names": "nobody", "synchronous_commit": "local"}
    with PostgresServer(settings=settings) as server:
        url = server.url()
        # (Postgres 18 refuses to delete from a table with a generated column under REPLICA IDENTITY FULL.)
        plain = "ALTER TABLE trades DROP COLUMN twice"
        with admin(url, TRADES, plain, "INSERT INTO trades VALUES (1, 'AAPL'), (2, 'MSFT')") as connection:
            cast = make(url)
            async with cast.lifespan(), await psycopg.AsyncConnection.connect(url, autocommit=True) as writer:
                await writer.execute("SET synchronous_commit = on")
                live = LocalStream(cast, "bob", ["finance:AAPL"])
                waiting = asyncio.create_task(writer.execute("DELETE FROM trades WHERE id = 1"))
                # It has come by, and nobody can see it.
                await live.until(lambda: bool(live.events()))
                both = LocalStream(cast, "ann", ["finance:AAPL", "finance:MSFT"], snapshot=True)
                other = LocalStream(cast, "eve", ["finance:MSFT"], snapshot=True)
                assert list((await whole(other, "finance:MSFT")).rows["finance:MSFT"]) == [2]
                await both.until(lambda: both.events("rowcast.bye") == [{"reason": "unavailable"}])
                assert not both.events("rowcast.snapshot")
                connection.execute("SELECT pg_cancel_backend(%s)", [writer.info.backend_pid])  # it waits no longer
                await waiting
                again = LocalStream(cast, "ann", ["finance:AAPL"], snapshot=True)
                assert (await whole(again, "finance:AAPL")).rows == {"finance:AAPL": {}}


async def test_over_http_a_client_asks_for_it(database: str) -> None:
    with admin(database, TRADES, "INSERT INTO trades VALUES (1, 'AAPL', 1)") as connection:
        cast = make(database, api={"key": "k"})
        token = mint(cast.config, "ann", topics=["finance:AAPL"])
        async with serving(cast.asgi()) as client:
            url = str(client.base_url)
            names = []
            async with asyncio.timeout(20):
                async for event in EventStream(url, token=token, snapshot=True):
                    names.append(event.event)
                    if event.event == "rowcast.snapshot":
                        assert event.json()["rows"][0]["id"] == 1
                        connection.execute("INSERT INTO trades VALUES (2, 'AAPL', 1)")
                    elif event.event == "message":
                        assert event.json()["record"]["id"] == 2
                        break
            assert names == ["rowcast.ready", "rowcast.snapshot", "message"]
            refused = await client.get("/events?snapshot=yes", headers={"authorization": f"Bearer {token}"})
            assert (refused.status_code, refused.json()["error"][:10]) == (400, "?snapshot=")


async def test_without_a_database_the_stream_is_ended_to_come_again(database: str) -> None:
    with admin(database, TRADES):
        cast = make(database)
        async with cast.lifespan():
            assert cast.replica.pool is not None
            await cast.replica.pool.close()
            stream = LocalStream(cast, "ann", ["finance:AAPL"], snapshot=True)
            await stream.until(lambda: bool(stream.events("rowcast.bye")))
            assert stream.events("rowcast.bye") == [{"reason": "unavailable"}]
            assert cast.hub.streams_count == 0
            assert parse_position(stream.position).owed
    await asyncio.sleep(0)
