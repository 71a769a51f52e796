"""Subscription rules on a real Postgres: every kind of rule and key, and what DDL does to them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from rowcast import ConfigError, Rowcast, SetupError
from rowcast.testing.local import LocalStream

SECRET = "0123456789abcdef0123456789abcdef"
ITEMS = {"table": "items", "topic": "{topic}", "deletes": False}


@pytest.fixture
def sql(database: str) -> Any:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY, topic text, text text)")
        yield connection.execute


def make(database: str, *rules: dict[str, Any], **sections: Any) -> Rowcast:
    return Rowcast(postgres=database, auth=SECRET, route=[ITEMS], subscription=list(rules), **sections)


@contextlib.asynccontextmanager
async def streaming(cast: Rowcast, user: str = "ann") -> AsyncIterator[LocalStream]:
    async with cast.lifespan():
        stream = LocalStream(cast, user)
        await stream.ready()
        yield stream


def topics(stream: LocalStream) -> list[str]:
    """The topics that the client was told last."""
    told = stream.events("rowcast.subscriptions") or stream.events("rowcast.ready")
    return list(told[-1]["topics"])


@pytest.mark.parametrize(
    ("kind", "user", "other"),
    [
        ("text", "ann", "bob"),
        ("bigint", "42", "43"),
        ("smallint", "7", "8"),
        ("uuid", "6f9619ff-8b86-d011-b42d-00c04fc964ff", "6f9619ff-8b86-d011-b42d-00c04fc964aa"),
        ("person", "ann", "bob"),
        ("varchar(20)", "ann", "bob"),
    ],
)
async def test_user_columns_of_every_kind(database: str, sql: Any, kind: str, user: str, other: str) -> None:
    sql("CREATE TYPE person AS ENUM ('ann', 'bob')")
    sql(f"CREATE TABLE subs (id int PRIMARY KEY, who {kind}, topic text)")
    sql("INSERT INTO subs VALUES (1, %s, 'a')", [user])
    rule = {"table": "subs", "user": "{who}", "topics": ["{topic}"]}
    async with streaming(make(database, rule), user) as stream:
        assert topics(stream) == ["a"]
        sql("INSERT INTO subs VALUES (2, %s, 'b')", [user])
        sql("UPDATE subs SET who = %s WHERE id = 1", [other])
        await stream.settled()
        assert topics(stream) == ["b"]
        for stranger in ("nobody", "0042", "9" * 30, "it's", "x\u2028"):
            strange = LocalStream(stream._cast, stranger)
            assert (await strange.ready())["topics"] == []


async def test_rows_read_by_sql_equal_those_from_the_wal_also_of_types_named_like_built_in_ones(
    database: str, sql: Any
) -> None:
    sql("CREATE TYPE public.numeric AS ENUM ('1', '2')")
    sql("CREATE TABLE subs (id int PRIMARY KEY, who text, topic public.numeric)")
    sql("INSERT INTO subs VALUES (1, 'ann', '1')")
    cast = Rowcast(postgres=database, auth=SECRET)

    @cast.subscriptions("subs", user="who")
    def kinds(row: dict[str, Any]) -> list[str]:
        return [f"{type(row['topic']).__name__}:{row['topic']}"]

    async with streaming(cast) as stream:
        sql("INSERT INTO subs VALUES (2, 'ann', '2')")
        await stream.settled()
        assert topics(stream) == ["str:1", "str:2"]


async def test_rules_of_functions(database: str, sql: Any) -> None:
    sql("CREATE TABLE subs (id int PRIMARY KEY, who text, config jsonb, on_ boolean)")
    sql("""INSERT INTO subs VALUES (1, 'ann', '{"symbols": ["A", "B"]}', true), (2, 'ann', '3', true)""")
    cast = Rowcast(postgres=database, auth=SECRET)

    @cast.subscriptions("subs", user="who")
    def channels(row: dict[str, Any]) -> list[str]:
        return [f"t:{symbol}" for symbol in row["config"]["symbols"]] if row["on_"] else []

    @cast.route("items", deletes=False)
    def item(change: Any) -> str | None:
        return None if change.row["text"] == "secret" else f"t:{change.row['topic']}"

    async with streaming(cast) as stream:
        assert topics(stream) == ["t:A", "t:B"], "the row for which the function raises gives no topics"
        sql("INSERT INTO items (topic, text) VALUES ('A', 'secret'), ('B', 'x'), ('C', 'x'), (NULL, 'x')")
        sql("UPDATE subs SET on_ = false WHERE id = 1")
        sql("INSERT INTO items (topic, text) VALUES ('A', 'x')")
        await stream.settled()
        assert [record["topic"] for record in stream.records()] == ["B"]
        assert topics(stream) == []


async def test_an_sql_rule_is_asked_again_when_a_table_it_depends_on_changes(database: str, sql: Any) -> None:
    sql("CREATE TABLE leagues (key text PRIMARY KEY, region text)")
    sql("CREATE TABLE members (who text, league text, PRIMARY KEY (who, league))")
    sql("INSERT INTO leagues VALUES ('x', 'eu'), ('y', 'us')")
    sql("INSERT INTO members VALUES ('ann', 'x')")
    rule = {
        "sql": "SELECT region || ':' || key FROM members JOIN leagues ON key = league WHERE who = %(user)s",
        "depends_on": {"members": "{who}"},
    }
    async with streaming(make(database, rule)) as stream:
        assert topics(stream) == ["eu:x"]
        with psycopg.connect(database) as connection:
            connection.execute("INSERT INTO members VALUES ('ann', 'y')")
            connection.execute("INSERT INTO items (topic, text) VALUES ('us:y', 'in the same transaction')")
        await stream.until(lambda: bool(stream.records()))
        assert topics(stream) == ["eu:x", "us:y"]
        sql("DELETE FROM members WHERE league = 'x'")
        await stream.until(lambda: topics(stream) == ["us:y"])
        sql("INSERT INTO members VALUES ('bob', 'x')")
        sql("UPDATE leagues SET region = 'ca' WHERE key = 'y'")
        await stream.settled()
        assert topics(stream) == ["us:y"], "leagues is not named in depends_on"
        await stream._cast.resubscribe("ann")
        await stream.until(lambda: topics(stream) == ["ca:y"])


async def test_a_table_without_a_key_is_refused_unless_its_identity_is_full(database: str, sql: Any) -> None:
    sql("CREATE TABLE subs (who text, topic text)")
    rule = {"table": "subs", "user": "{who}", "topics": ["{topic}"]}
    with pytest.raises(ConfigError, match=r'subscription 1: .*ALTER TABLE "public"."subs" REPLICA IDENTITY FULL'):
        await make(database, rule).start()
    sql("ALTER TABLE subs REPLICA IDENTITY FULL")
    sql("INSERT INTO subs VALUES ('ann', 'a'), ('ann', 'a')")
    async with streaming(make(database, rule)) as stream:
        sql("INSERT INTO subs VALUES ('ann', 'b')")
        sql("DELETE FROM subs WHERE ctid = (SELECT min(ctid) FROM subs)")
        await stream.settled()
        assert topics(stream) == ["a", "b"], "one of two equal rows is left"
        sql("UPDATE subs SET topic = 'c' WHERE topic = 'a'")
        await stream.settled()
        assert topics(stream) == ["b", "c"]
        sql("TRUNCATE subs")
        await stream.settled()
        assert topics(stream) == []


async def test_a_routed_table_without_identity_is_never_published(database: str, sql: Any) -> None:
    sql("CREATE TABLE keyless (topic text)")
    cast = Rowcast(postgres=database, auth=SECRET, route=[{"table": "keyless", "topic": "t", "deletes": False}])
    with pytest.raises(SetupError, match="REPLICA IDENTITY FULL"):
        await cast.start()
    sql("INSERT INTO keyless VALUES ('x')")
    sql("UPDATE keyless SET topic = 'y'")  # the application's own UPDATE still works


async def test_a_partitioned_table_counts_as_its_root(database: str, sql: Any) -> None:
    sql("CREATE TABLE subs (id int, who text, topic text, PRIMARY KEY (id)) PARTITION BY RANGE (id)")
    sql("CREATE TABLE subs_low PARTITION OF subs FOR VALUES FROM (0) TO (100)")
    sql("CREATE TABLE subs_high PARTITION OF subs FOR VALUES FROM (100) TO (200)")
    sql("INSERT INTO subs VALUES (1, 'ann', 'a')")
    rule = {"table": "subs", "user": "{who}", "topics": ["{topic}"]}
    async with streaming(make(database, rule)) as stream:
        assert topics(stream) == ["a"]
        sql("INSERT INTO subs VALUES (150, 'ann', 'b')")
        sql("UPDATE subs SET id = 151 WHERE id = 1")  # moves to the other partition
        await stream.settled()
        assert topics(stream) == ["a", "b"]
    partition = {"table": "subs_low", "user": "{who}", "topics": ["{topic}"]}
    with pytest.raises(ConfigError, match=r"name public\.subs instead"):
        await make(database, partition).start()


async def test_columns_that_come_go_and_are_renamed(database: str, sql: Any) -> None:
    async with streaming(Rowcast(postgres=database, auth=SECRET, route=[ITEMS])) as stream:
        cast = stream._cast
        other = LocalStream(cast, "bob", ["a"])
        await other.ready()
        sql("INSERT INTO items (topic) VALUES ('a')")
        sql("ALTER TABLE items ADD COLUMN extra int DEFAULT 5")
        sql("INSERT INTO items (topic) VALUES ('a')")
        sql("ALTER TABLE items DROP COLUMN text")
        sql("INSERT INTO items (topic) VALUES ('a')")
        sql("ALTER TABLE items RENAME COLUMN extra TO more")
        sql("INSERT INTO items (topic) VALUES ('a')")
        sql("ALTER TABLE items RENAME COLUMN topic TO subject")
        sql("INSERT INTO items (subject) VALUES ('a')")
        sql("ALTER TABLE items RENAME COLUMN subject TO topic")
        sql("INSERT INTO items (topic) VALUES ('a')")
        await other.settled()
        assert [sorted(record) for record in other.records()] == [
            ["id", "text", "topic"],
            ["extra", "id", "text", "topic"],
            ["extra", "id", "topic"],
            ["id", "more", "topic"],
            ["id", "more", "topic"],
        ]
        assert [record["id"] for record in other.records()] == [1, 2, 3, 4, 6]
        assert any("no column 'topic'" in problem for problem in cast.replica.router.problems)


async def test_a_rule_whose_column_went_gives_nothing_until_it_is_back(database: str, sql: Any) -> None:
    sql("CREATE TABLE subs (id int PRIMARY KEY, who text, topic text)")
    sql("INSERT INTO subs VALUES (1, 'ann', 'a')")
    async with streaming(make(database, {"table": "subs", "user": "{who}", "topics": ["{topic}"]})) as stream:
        sql("ALTER TABLE subs RENAME COLUMN topic TO subject")
        sql("UPDATE subs SET subject = 'b'")
        await stream.settled()
        assert topics(stream) == [], "rather too little than what somebody may not see any more"
        sql("ALTER TABLE subs RENAME COLUMN subject TO topic")
        sql("INSERT INTO subs VALUES (2, 'ann', 'c')")
        await stream.until(lambda: topics(stream) == ["b", "c"])


async def test_truncate_reaches_the_topics_of_the_route_and_no_others(database: str, sql: Any) -> None:
    route = {"table": "items", "topic": "finance:{topic}", "deletes": False}
    async with streaming(Rowcast(postgres=database, auth=SECRET, route=[route])) as stream:
        finance = LocalStream(stream._cast, "bob", ["finance:A", "finance:*"])
        chat = LocalStream(stream._cast, "eve", ["chat:A"])
        await finance.ready()
        await chat.ready()
        sql("INSERT INTO items (topic) VALUES ('*')")
        sql("TRUNCATE items")
        await finance.settled()
        assert [(event["action"], event["topic"]) for event in finance.events()] == [
            ("insert", "finance:*"),
            ("truncate", "finance:*"),
        ]
        await chat.settled()
        assert chat.events() == []


async def test_rows_that_move_between_topics_are_deleted_where_they_were(database: str, sql: Any) -> None:
    sql("ALTER TABLE items REPLICA IDENTITY FULL")
    route = {"table": "items", "topic": "{topic}", "when": "{text} <> 'hidden'"}
    async with streaming(Rowcast(postgres=database, auth=SECRET, route=[route])) as stream:
        watcher = LocalStream(stream._cast, "bob", ["a"])
        await watcher.ready()
        sql("INSERT INTO items (topic, text) VALUES ('a', 'x'), ('b', 'x')")
        sql("UPDATE items SET text = 'y' WHERE topic = 'a'")
        sql("UPDATE items SET topic = 'c' WHERE topic = 'a'")
        sql("UPDATE items SET topic = 'a' WHERE topic = 'b'")
        sql("UPDATE items SET text = 'hidden' WHERE topic = 'a'")
        sql("DELETE FROM items WHERE topic = 'a'")
        await watcher.settled()
        assert [(e["action"], e["record"]["id"], e.get("moved", False)) for e in watcher.events()] == [
            ("insert", 1, False),
            ("update", 1, False),
            ("delete", 1, True),
            ("update", 2, False),
            ("delete", 2, True),
        ]
        assert watcher.events()[1]["changes"] == {"text": "x"}


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"route": [{"table": "itms", "topic": "x"}]}, "route 1: there is no table public.itms; did you mean"),
        ({"route": [{"table": "items", "topic": "{topc}"}]}, "no column 'topc'; did you mean 'topic'"),
        ({"route": [{"table": "items", "topic": "x", "when": "{tex} > 1"}]}, "no column 'tex'"),
        ({"subscription": [{"table": "items", "user": "{who}", "topics": ["x"]}]}, "no column 'who'"),
    ],
)
async def test_unknown_tables_and_columns_are_named(
    database: str, sql: Any, section: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        await Rowcast(postgres=database, auth=SECRET, **section).start()
