"""Routes on a real WAL: what each replica identity lets a route do, and that the SQL we advise mends what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

import psycopg
import pytest

from rowcast import ConfigError
from rowcast.core.change import Change
from rowcast.core.entry import Kind
from rowcast.core.pgoutput import Decoder
from rowcast.core.routes import Route, Router
from rowcast.core.rules import RowRule, Rule, SqlRule
from rowcast.core.validate import bind, bind_routes, validate
from rowcast.sources.catalog import read_catalog

Connection = psycopg.Connection[tuple[object, ...]]


class Wal:
    """The changes of a publication, read through a slot by SQL."""

    def __init__(self, connection: Connection) -> None:
        self.run = connection.execute
        self.run("CREATE PUBLICATION rowcast FOR ALL TABLES WITH (publish_via_partition_root)")
        self.run("SELECT pg_create_logical_replication_slot('routes', 'pgoutput')")

    def changes(self) -> list[Change]:
        cursor = self.run(
            "SELECT data FROM pg_logical_slot_get_binary_changes('routes', NULL, NULL, 'proto_version', '1',"
            " 'publication_names', 'rowcast')"
        )
        decoder = Decoder(lambda relation: True)
        found: list[Change] = []
        for (data,) in cursor.fetchall():
            assert isinstance(data, bytes)
            event = decoder.decode(data)
            if isinstance(event, Change):
                found.append(event)
            elif isinstance(event, list):  # a TRUNCATE, of each table
                found.extend(event)
        return found

    def sent(self, router: Router) -> list[tuple[str, str]]:
        """What the router makes of the changes since the last call: (what, topic)."""
        found = []
        for change in self.changes():
            for entry in router.route(change):
                moved = b'"moved":true' in entry.body.encode(1 << 20) if entry.kind is Kind.DATA else False
                what = "moved" if moved else change.action if entry.kind is Kind.DATA else entry.kind.name
                found.append((what, entry.topic))
        return found


@pytest.fixture
def wal(database: str) -> Iterator[Wal]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield Wal(connection)


async def warnings(database: str, routes: Sequence[Route], rules: Sequence[Rule] = ()) -> list[str]:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        return validate(routes, rules, await read_catalog(connection))


async def router(database: str, routes: Sequence[Route], rules: Sequence[Rule] = ()) -> Router:
    async with await psycopg.AsyncConnection.connect(database) as connection:
        catalog = await read_catalog(connection)
    validate(routes, rules, catalog)
    return Router(bind_routes(routes, catalog), bind(rules, catalog))


def advised(text: str) -> str:
    """The SQL that a message says to run."""
    match = re.search(r"run: (DO .* END \$\$|ALTER TABLE \S+ REPLICA IDENTITY FULL)", text)
    assert match is not None, text
    return match[1]


def finance(**options: bool) -> Route:
    return Route.from_templates("trades", origin="rowcast.toml:5", topic="finance:{symbol}", **options)


WRITES = (
    "INSERT INTO trades VALUES (1, 'A'), (2, 'B')",
    "UPDATE trades SET symbol = 'B' WHERE id = 1",
    "DELETE FROM trades WHERE id = 2",
    "TRUNCATE trades",
)


async def test_the_primary_key_alone_does_not_tell_where_a_row_was(database: str, wal: Wal) -> None:
    wal.run("CREATE TABLE trades (id int PRIMARY KEY, symbol text)")
    (warning,) = await warnings(database, [finance()])
    found = await router(database, [finance()])
    for statement in WRITES:
        wal.run(statement)
    expected = [("insert", "finance:A"), ("insert", "finance:B"), ("update", "finance:B"), ("SWEEP", "finance:")]
    assert wal.sent(found) == expected
    wal.run(advised(warning))
    assert await warnings(database, [finance()]) == []


@pytest.mark.parametrize("identity", ["FULL", "USING INDEX by_symbol"])
async def test_an_identity_that_tells_it_moves_and_deletes(database: str, wal: Wal, identity: str) -> None:
    wal.run("CREATE TABLE trades (id int PRIMARY KEY, symbol text NOT NULL)")
    wal.run("CREATE UNIQUE INDEX by_symbol ON trades (symbol, id)")
    wal.run(f"ALTER TABLE trades REPLICA IDENTITY {identity}")
    assert await warnings(database, [finance()]) == []
    found = await router(database, [finance()])
    for statement in WRITES:
        wal.run(statement)
    assert wal.sent(found) == [
        ("insert", "finance:A"),
        ("insert", "finance:B"),
        ("moved", "finance:A"),
        ("update", "finance:B"),
        ("delete", "finance:B"),
        ("SWEEP", "finance:"),
    ]


@pytest.mark.parametrize("key", ["", ", PRIMARY KEY (id, symbol)"])
async def test_partitions_need_what_their_root_has(database: str, wal: Wal, key: str) -> None:
    wal.run(f"CREATE TABLE trades (id int, symbol text, price int{key}) PARTITION BY LIST (symbol)")
    wal.run("CREATE TABLE trades_a PARTITION OF trades FOR VALUES IN ('A')")
    wal.run("CREATE TABLE trades_b PARTITION OF trades FOR VALUES IN ('B')")
    wal.run("ALTER TABLE trades REPLICA IDENTITY FULL")  # does not reach the partitions
    price = Route.from_templates("trades", origin="here", topic="price:{price}")
    refused = 0
    while refused < 3:  # it is said of one partition after the other
        try:
            await warnings(database, [price])
        except ConfigError as error:
            refused += 1
            wal.run(advised(str(error)))
        else:
            break
    assert refused == (1 if key else 2)
    assert await warnings(database, [price]) == []
    found = await router(database, [price])
    wal.run("INSERT INTO trades VALUES (1, 'A', 5)")
    wal.run("UPDATE trades SET price = 6")
    wal.run("DELETE FROM trades")
    assert wal.sent(found) == [
        ("insert", "price:5"),
        ("moved", "price:5"),
        ("update", "price:6"),
        ("delete", "price:6"),
    ]


async def test_a_row_rule_and_an_sql_rule_say_what_they_need(database: str, wal: Wal) -> None:
    wal.run("CREATE TABLE trades (id int PRIMARY KEY, symbol text)")
    wal.run("CREATE TABLE subs (who text, symbol text)")
    rows = RowRule.from_templates("subs", "{who}", ["finance:{symbol}"], None, index=0, origin="rowcast.toml:9")
    with pytest.raises(ConfigError, match="can't be told apart") as caught:
        await warnings(database, [], [rows])
    wal.run(advised(str(caught.value)))
    assert await warnings(database, [], [rows]) == []
    wal.run("ALTER TABLE subs ADD PRIMARY KEY (symbol), REPLICA IDENTITY DEFAULT")
    sql = SqlRule(1, "…", {"public.subs": "who"}, "rowcast.toml:13")
    (warning,) = await warnings(database, [], [sql])
    wal.run(advised(warning))
    assert await warnings(database, [], [sql]) == []


async def test_a_large_value_that_was_left_alone(database: str, wal: Wal) -> None:
    wal.run("CREATE TABLE trades (id int PRIMARY KEY, symbol text, config jsonb)")
    wal.run("ALTER TABLE trades ALTER COLUMN config SET STORAGE EXTERNAL")
    tagged = Route.from_templates("trades", origin="rowcast.toml:5", topic="tag:{config.tag}", deletes=False)
    found = await router(database, [tagged, finance(deletes=False)])
    wal.run("INSERT INTO trades VALUES (1, 'A', jsonb_build_object('tag', 'x', 'pad', repeat('x', 100000)))")
    wal.run("UPDATE trades SET symbol = 'B'")
    assert wal.sent(found) == [("insert", "tag:x"), ("insert", "finance:A"), ("update", "finance:B")]
    (problem,) = found.problems
    wal.run(advised(problem))
    wal.run("UPDATE trades SET symbol = 'C'")
    assert wal.sent(found) == [("update", "tag:x"), ("moved", "finance:B"), ("update", "finance:C")]


async def test_columns_that_come_go_and_are_renamed(database: str, wal: Wal) -> None:
    wal.run("CREATE TABLE trades (id int PRIMARY KEY, symbol text, price numeric, note text)")
    rule = RowRule.from_templates("trades", "{note}", ["x"], "{price} > 0", index=0, origin="rowcast.toml:9")
    by_id = Route.from_templates("trades", origin="rowcast.toml:6", topic="trade:{id}")
    found = await router(database, [finance(deletes=False), by_id], [rule])
    wal.run("INSERT INTO trades VALUES (1, 'A', 1, 'x')")
    wal.run("ALTER TABLE trades ADD COLUMN extra int, DROP COLUMN note, ADD COLUMN note text")
    wal.run("INSERT INTO trades VALUES (2, 'A', 1, 3, 'x')")
    assert wal.sent(found) == [("ROW", ""), ("insert", "finance:A"), ("insert", "trade:1")] + [
        ("ROW", ""),
        ("insert", "finance:A"),
        ("insert", "trade:2"),
    ]
    wal.run("ALTER TABLE trades RENAME COLUMN symbol TO ticker")
    wal.run("ALTER TABLE trades RENAME COLUMN price TO cost")
    wal.run("UPDATE trades SET cost = 2 WHERE id = 1")
    wal.run("UPDATE trades SET cost = 3 WHERE id = 1")
    assert wal.sent(found) == [("ROW", ""), ("update", "trade:1"), ("update", "trade:1")]
    assert [re.sub(r" any more.*", "", problem) for problem in found.problems] == [
        "rowcast.toml:9: public.trades has no column 'price'",
        "rowcast.toml:5: public.trades has no column 'symbol'",
    ]
    wal.run("ALTER TABLE trades RENAME COLUMN ticker TO symbol")
    wal.run("ALTER TABLE trades RENAME COLUMN cost TO price")
    wal.run("UPDATE trades SET price = 4 WHERE id = 1")
    assert wal.sent(found) == [("ROW", ""), ("update", "finance:A"), ("update", "trade:1")]


async def test_a_replica_identity_that_changes_under_a_row_rule(database: str, wal: Wal) -> None:
    wal.run("CREATE TABLE trades (id int PRIMARY KEY, symbol text NOT NULL UNIQUE)")
    rule = RowRule.from_templates("trades", "{symbol}", ["x"], None, index=0, origin="rowcast.toml:9")
    found = await router(database, [], [rule])
    wal.run("INSERT INTO trades VALUES (1, 'A')")
    wal.run("ALTER TABLE trades REPLICA IDENTITY USING INDEX trades_symbol_key")
    wal.run("DELETE FROM trades")
    actions = [entry.body.action for change in wal.changes() for entry in found.route(change)]
    assert actions == ["insert", "truncate"]
    wal.run(advised(found.problems[0]))
    wal.run("INSERT INTO trades VALUES (1, 'A')")
    wal.run("DELETE FROM trades")
    actions = [entry.body.action for change in wal.changes() for entry in found.route(change)]
    assert actions == ["insert", "delete"]


@pytest.mark.parametrize("identity", ["DEFAULT", "USING INDEX quotes_code", "FULL"])
def test_an_update_of_the_key_tells_the_old_one(wal: Wal, identity: str) -> None:
    wal.run("CREATE TABLE quotes (id int PRIMARY KEY, code int NOT NULL, price int)")
    wal.run("CREATE UNIQUE INDEX quotes_code ON quotes (code)")
    wal.run(f"ALTER TABLE quotes REPLICA IDENTITY {identity}".encode())
    wal.run("INSERT INTO quotes VALUES (1, 1, 1)")
    wal.changes()
    wal.run("UPDATE quotes SET id = 2, code = 2")
    wal.run("UPDATE quotes SET price = 1")
    router = Router([Route.from_templates("quotes", topic="all", columns=["id", "code"], origin="here")])
    told = [json.loads(entry.body.encode(1 << 20))["changes"] for each in wal.changes() for entry in router.route(each)]
    both = {"id": 1, "code": 1}
    expected = {"DEFAULT": [{"id": 1}, None], "FULL": [both, {}]}
    assert told == expected.get(identity, [{"code": 1}, None])
