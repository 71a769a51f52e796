"""Routes and the router: where changes go, in which order, and what happens to those that go nowhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.core import routes
from rowcast.core.catalog import ColumnInfo, TableInfo
from rowcast.core.change import UNCHANGED, Action, Change, Column, Relation
from rowcast.core.entry import Entry, Kind, RowChange
from rowcast.core.position import MINOR_SPACING
from rowcast.core.routes import MAX_ENTRIES, Route, Router
from rowcast.core.rules import RowRule, SqlRule
from rowcast.core.template import MAX_TEXTS
from rowcast.errors import ConfigError

TYPES = {"id": 23, "symbol": 25, "price": 1700, "owner": 23, "config": 3802}
PLACE = (100, 5 << 20)

Row = dict[str, Any]


def relation(identity: str = "d", key: Iterable[str] = ("id",), columns: Iterable[str] = TYPES) -> Relation:
    whole = identity == "f"
    return Relation(
        1,
        "public",
        "trades",
        identity,
        tuple(Column(name, TYPES.get(name, 25), key=whole or name in key) for name in columns),
    )


TRADES = relation()
FULL = relation("f")
NAMELESS = relation("n", ())


def raw(of: Relation, row: Row) -> tuple[Any, ...]:
    return tuple(
        value if value is None or value is UNCHANGED else str(value).encode()
        for value in (row.get(column.name) for column in of.columns)
    )


def change(action: Action, new: Row | None = None, old: Row | None = None, of: Relation = TRADES) -> Change:
    """A change as the decoder gives it: of an old row without FULL, the key's columns only."""
    return Change(
        action,
        of,
        None if new is None else raw(of, new),
        None if old is None else raw(of, {k: v for k, v in old.items() if of.columns[[*names(of)].index(k)].key}),
        old_is_key=old is not None and of.identity != "f",
        place=PLACE,
        xid=7,
        commit_time=1_700_000_000_000_000,
    )


def names(of: Relation) -> list[str]:
    return [column.name for column in of.columns]


def route(topic: str = "finance:{symbol}", **options: Any) -> Route:
    return Route.from_templates("trades", origin="rowcast.toml:9", topic=topic, **options)


def sent(entries: Iterable[Entry]) -> list[tuple[str, str]]:
    """What is delivered: (topic, action as the client sees it)."""
    found = []
    for entry in entries:
        if entry.kind is Kind.DATA:
            event = msgspec.json.decode(entry.body.encode(1 << 20))
            assert event["topic"] == entry.topic
            found.append((entry.topic, "moved" if event.get("moved") else event["action"]))
    return found


AAPL = {"id": 1, "symbol": "AAPL", "price": "2.5", "owner": 7, "config": '{"tags": ["x", "y"]}'}
MSFT = AAPL | {"symbol": "MSFT"}


# What a change becomes


def test_an_insert_becomes_an_entry_on_its_topic() -> None:
    (entry,) = Router([route()]).route(change("insert", AAPL))
    assert (entry.kind, entry.topic, entry.place, entry.xid) == (Kind.DATA, "finance:AAPL", PLACE, 0)
    assert (entry.time, entry.key, entry.event) == (1_700_000_000_000_000, None, None)
    assert msgspec.json.decode(entry.body.encode(1 << 20)) == {
        "topic": "finance:AAPL",
        "action": "insert",
        "record": {"id": 1, "symbol": "AAPL", "price": "2.5", "owner": 7, "config": {"tags": ["x", "y"]}},
        "changes": None,
        "metadata": {
            "table_schema": "public",
            "table_name": "trades",
            "commit_timestamp": "2023-11-14T22:13:20.000000Z",
        },
    }


def test_a_table_without_routes_gives_nothing() -> None:
    router = Router([route()])
    other = Relation(2, "public", "other", "d", TRADES.columns)
    assert router.route(change("insert", AAPL, of=other)) == []
    assert not router.wants(other)
    assert router.wants(TRADES)
    assert router.tables == {"public.trades"}


def test_each_route_and_each_topic_has_an_entry_at_a_place_of_its_own() -> None:
    router = Router([route(), route("tag:{config.tags[*]}"), route("all")])
    entries = router.route(change("insert", AAPL))
    assert [entry.topic for entry in entries] == ["finance:AAPL", "tag:x", "tag:y", "all"]
    assert [entry.place for entry in entries] == [(100, (5 << 20) + number) for number in range(4)]


def test_rules_come_first() -> None:
    rules = [row_rule(index=0), row_rule(index=1)]
    entries = Router([route()], rules).route(change("insert", AAPL))
    assert [(entry.kind, entry.topic) for entry in entries] == [
        (Kind.ROW, ""),
        (Kind.ROW, ""),
        (Kind.DATA, "finance:AAPL"),
    ]
    assert [entry.place[1] - (5 << 20) for entry in entries] == [0, 1, 2]
    assert {entry.xid for entry in entries if entry.kind is Kind.ROW} == {7}


def test_what_a_snapshot_holds_says_which_transaction_it_is_of() -> None:
    with_snapshot = Route.from_templates("trades", origin="here", topic="all", snapshot=True)
    entries = Router([with_snapshot, route("all")]).route(change("insert", AAPL))
    assert [entry.xid for entry in entries] == [7, 0]


def test_a_user_route_goes_to_the_users_own_topic() -> None:
    router = Router([Route.from_templates("trades", origin="here", user="{owner}")])
    assert sent(router.route(change("insert", AAPL))) == [("user:7", "insert")]
    assert router.route(change("insert", AAPL | {"owner": None})) == []


def test_the_condition_decides() -> None:
    router = Router([route(when="{price} > 2")])
    assert sent(router.route(change("insert", AAPL))) == [("finance:AAPL", "insert")]
    assert router.route(change("insert", AAPL | {"price": "2.0"})) == []


def test_columns_numbers_and_envelope_are_as_configured() -> None:
    router = Router([route(columns=["price"], numeric="number")], envelope="sequin")
    (entry,) = router.route(change("insert", AAPL))
    (event,) = msgspec.json.decode(entry.body.encode(1 << 20))["data"]
    assert event["record"] == {"price": 2.5}


def test_a_topic_that_can_not_be_one_is_left_out_and_counted() -> None:
    router = Router([route(), Route.from_function("trades", lambda change: ["a\0", "b"])])
    assert sent(router.route(change("insert", AAPL | {"symbol": "A\nB"}))) == [("b", "insert")]
    assert router.unfit == 2
    assert router.poisoned == 0


# Updates that move a row


def test_an_update_that_moves_a_row_is_a_delete_where_it_was_and_then_an_update_where_it_is() -> None:
    entries = Router([route()]).route(change("update", MSFT, AAPL, FULL))
    assert sent(entries) == [("finance:AAPL", "moved"), ("finance:MSFT", "update")]
    left = msgspec.json.decode(entries[0].body.encode(1 << 20))
    assert (left["action"], left["record"]["symbol"]) == ("delete", "AAPL")


def test_topics_that_a_row_keeps_are_updates() -> None:
    router = Router([route("tag:{config.tags[*]}")])
    moved = AAPL | {"config": '{"tags": ["y", "z"]}'}
    assert sent(router.route(change("update", moved, AAPL, FULL))) == [
        ("tag:x", "moved"),
        ("tag:y", "update"),
        ("tag:z", "update"),
    ]


def test_a_condition_that_begins_or_ceases_to_hold_moves_a_row_too() -> None:
    router = Router([route(when="{price} > 2")])
    cheap = AAPL | {"price": "1"}
    assert sent(router.route(change("update", AAPL, cheap, FULL))) == [("finance:AAPL", "update")]
    assert sent(router.route(change("update", cheap, AAPL, FULL))) == [("finance:AAPL", "moved")]
    assert sent(router.route(change("update", cheap, cheap, FULL))) == []


def test_without_old_values_an_update_is_only_where_the_row_is_now() -> None:
    router = Router([route()])
    assert sent(router.route(change("update", MSFT))) == [("finance:MSFT", "update")]
    assert sent(router.route(change("update", MSFT | {"id": 2}, AAPL))) == [("finance:MSFT", "update")]


def test_the_identity_tells_where_a_row_was_if_it_has_the_topics_columns() -> None:
    indexed = relation("i", ("symbol",))
    router = Router([route()])
    entries = router.route(change("update", MSFT, AAPL, indexed))
    assert sent(entries) == [("finance:AAPL", "moved"), ("finance:MSFT", "update")]
    conditional = Router([route(when="{price} > 2")])
    assert sent(conditional.route(change("update", MSFT, AAPL, indexed))) == [("finance:MSFT", "update")]


def test_where_a_row_was_is_not_guessed_from_a_part_of_it() -> None:
    nothing = AAPL | {"price": None}
    by_price = route("t:{id}", when="{price} is null")
    assert sent(Router([by_price]).route(change("update", nothing | {"id": 2}, nothing))) == [("t:2", "update")]
    function = Route.from_function("trades", lambda change: f"t:{change.row['id']}")
    assert sent(Router([function]).route(change("update", nothing | {"id": 2}, nothing))) == [("t:2", "update")]


# Deletes


def test_a_delete_goes_where_the_old_row_was() -> None:
    assert sent(Router([route()]).route(change("delete", None, AAPL, FULL))) == [("finance:AAPL", "delete")]
    by_id = Router([route("trade:{id}")])
    assert sent(by_id.route(change("delete", None, AAPL))) == [("trade:1", "delete")]


def test_a_delete_that_does_not_tell_where_is_no_entry() -> None:
    router = Router([route(), route("all", when="{price} is null"), route("news")])
    assert sent(router.route(change("delete", None, AAPL))) == [("news", "delete")]
    assert router.problems == []  # said at the start


def test_deletes_can_be_switched_off() -> None:
    router = Router([route(deletes=False)])
    assert router.route(change("delete", None, AAPL, FULL)) == []
    assert sent(router.route(change("update", MSFT, AAPL, FULL))) == [
        ("finance:AAPL", "moved"),
        ("finance:MSFT", "update"),
    ]


# Truncates


def test_a_truncate_goes_to_every_topic_that_begins_as_the_template_does() -> None:
    router = Router([route(), route("news"), Route.from_templates("trades", origin="here", user="{owner}")])
    entries = router.route(change("truncate"))
    assert [(entry.kind, entry.topic, entry.key) for entry in entries] == [
        (Kind.SWEEP, "finance:", None),
        (Kind.DATA, "news", None),
        (Kind.SWEEP, "user:", None),
    ]
    event = msgspec.json.decode(entries[0].body.encode(1 << 20))
    assert (event["topic"], event["action"], event["record"]) == ("finance:*", "truncate", None)


def test_a_truncate_goes_to_a_topic_without_columns_as_its_rows_do() -> None:
    router = Router([route("a{{b}}")])
    found = router.route(change("insert", {"id": 1})) + router.route(change("truncate"))
    assert [(entry.kind, entry.topic) for entry in found] == [(Kind.DATA, "a{b}")] * 2


def test_a_truncate_that_would_reach_everybody_is_told_to_the_operator_once() -> None:
    router = Router([route("{symbol}:x"), Route.from_function("trades", lambda change: "a")])
    for _ in range(3):
        assert router.route(change("truncate")) == []
    assert len(router.problems) == 2
    assert router.problems[0].startswith("rowcast.toml:9: a TRUNCATE of public.trades could not be addressed")


# Unchanged TOASTed values


def test_an_update_that_left_a_needed_large_value_alone_is_told_to_the_operator() -> None:
    router = Router([route("tag:{config.tags[*]}"), route()])
    entries = router.route(change("update", AAPL | {"config": UNCHANGED}))
    assert sent(entries) == [("finance:AAPL", "update")]
    (problem,) = router.problems
    assert "did not tell 'config'" in problem
    assert 'ALTER TABLE "public"."trades" REPLICA IDENTITY FULL' in problem


def test_an_unchanged_value_is_not_null() -> None:
    router = Router([route("all", when="{config} is null")])
    assert router.route(change("update", AAPL | {"config": UNCHANGED})) == []


# Conflation keys


def key_of(route: Route, of: Relation = TRADES, action: Action = "insert", old: Row | None = None) -> str | None:
    (*_, entry) = Router([route]).route(change(action, None if action == "delete" else AAPL, old, of))
    return entry.key


def test_only_conflated_routes_have_keys() -> None:
    assert key_of(route(key=["symbol"])) is None
    assert key_of(route(key=["symbol"], conflate=True)) == 'public.trades:["AAPL"]'
    assert key_of(route(key=["price", "symbol"], conflate=True)) == 'public.trades:["2.5","AAPL"]'


def test_the_key_is_the_replica_identity_unless_that_is_the_whole_row() -> None:
    assert key_of(route(conflate=True)) == "public.trades:[1]"
    assert key_of(route(conflate=True), FULL) is None
    columns = {name: ColumnInfo(oid, "") for name, oid in TYPES.items()}
    table = TableInfo("public", "trades", "r", columns, ("id",), "f", tuple(TYPES))
    assert key_of(route(conflate=True).bound(table), FULL) == "public.trades:[1]"
    assert key_of(route(conflate=True, key=["symbol"]).bound(table), FULL) == 'public.trades:["AAPL"]'


def test_a_delete_that_does_not_tell_the_key_has_none() -> None:
    assert key_of(route("t:{id}", key=["symbol"], conflate=True), action="delete", old=AAPL) is None
    assert key_of(route("t:{id}", key=["id"], conflate=True), action="delete", old=AAPL) == "public.trades:[1]"


def test_what_left_a_topic_has_the_old_rows_key() -> None:
    router = Router([route(conflate=True, key=["id"])])
    left, _ = router.route(change("update", MSFT | {"id": 2}, AAPL, FULL))
    assert left.key == "public.trades:[1]"


def test_an_update_of_the_key_is_left_out_for_no_newer_one() -> None:
    """It alone tells which row is gone; the next change of the row has the new key only."""
    renamed = AAPL | {"id": 2}
    for of, old in ((TRADES, {"id": 1}), (FULL, AAPL)):
        (entry,) = Router([route("all", key=["id"], conflate=True)]).route(change("update", renamed, old, of))
        assert entry.key is None
        (entry,) = Router([route("all", key=["id"], conflate=True)]).route(change("update", AAPL, AAPL, FULL))
        assert entry.key == "public.trades:[1]"


# Functions


def by_function(function: Callable[[Change], Any], **options: Any) -> Router:
    return Router([Route.from_function("trades", function, **options), route("after:{symbol}")])


@pytest.mark.parametrize(
    ("given", "topics"),
    [("a", ["a"]), (["a", "b", "a"], ["a", "b"]), (iter(("a",)), ["a"]), (None, []), ([], []), ("", [])],
)
def test_a_function_returns_a_topic_several_or_none(given: Any, topics: list[str]) -> None:
    entries = by_function(lambda change: given).route(change("insert", AAPL))
    assert [entry.topic for entry in entries] == [*topics, "after:AAPL"]


def test_a_function_sees_the_change() -> None:
    router = by_function(lambda change: f"{change.action}:{change.table}:{change.row['symbol']}")
    assert sent(router.route(change("insert", AAPL)))[0] == ("insert:trades:AAPL", "insert")


def test_a_function_tells_what_a_row_left() -> None:
    router = by_function(lambda change: f"f:{change.row['symbol']}")
    entries = router.route(change("update", MSFT, AAPL, FULL))
    assert sent(entries)[:2] == [("f:AAPL", "moved"), ("f:MSFT", "update")]


def test_a_function_that_wants_more_than_a_delete_tells_is_no_poison() -> None:
    router = by_function(lambda change: f"f:{change.row['symbol']}")
    assert router.route(change("delete", None, AAPL)) == []
    assert router.poisoned == 0
    assert "did not tell 'symbol'" in router.problems[0]
    by_id = by_function(lambda change: f"f:{change.row['id']}")
    assert sent(by_id.route(change("delete", None, AAPL))) == [("f:1", "delete")]


def fails(change: Change) -> str:
    raise RuntimeError("no\nluck")


def fails_by_key(change: Change) -> str:
    raise KeyError(["unhashable"])


@pytest.mark.parametrize(
    "function",
    [
        fails,
        lambda change: change.row["nonsense"],
        fails_by_key,
        lambda change: 5,
        lambda change: ["a", None],
        lambda change: [["a"]],
        lambda change: map(str, range(MAX_TEXTS + 1)),
    ],
)
def test_a_poison_row_is_skipped_counted_and_told_and_others_go_on(function: Callable[[Change], Any]) -> None:
    router = by_function(function)
    for _ in range(3):
        assert sent(router.route(change("insert", AAPL))) == [("after:AAPL", "insert")]
    assert router.poisoned == 3
    (problem,) = router.problems
    assert "test_routes.py:" in problem
    assert f"a row of public.trades at {PLACE} was skipped: " in problem
    assert "\n" not in problem


def test_a_function_that_fails_on_the_old_row_does_not_lose_the_new_one() -> None:
    def function(change: Change) -> str:
        if change.row["symbol"] == "AAPL":
            raise RuntimeError
        return "f"

    router = by_function(function)
    assert sent(router.route(change("update", MSFT, AAPL, FULL)))[0] == ("f", "update")
    assert router.poisoned == 1


def test_a_value_that_can_not_be_decoded_counts_as_null() -> None:
    router = Router([route(), route("price:{price}"), route("t:{config.tags[*]}")])
    entries = router.route(change("insert", AAPL | {"price": "much", "config": "{"}))
    assert [entry.topic for entry in entries] == ["finance:AAPL"]
    assert router.poisoned == 1
    assert "was taken for NULL" in router.problems[0]


def test_no_change_has_more_entries_than_there_are_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MAX_ENTRIES", 25)
    many = [Route.from_function("trades", lambda c, n=n: [f"{n}:{i}" for i in range(10)]) for n in range(4)]
    router = Router(many)
    assert len(router.route(change("insert", AAPL))) == 20
    assert router.poisoned == 2
    assert MAX_ENTRIES < MINOR_SPACING


# Rules


def row_rule(
    topics: Iterable[str] = ("finance:{symbol}",), when: str | None = "{price} > 0", index: int = 0
) -> RowRule:
    origin = f"rowcast.toml:{index + 20}"
    rule = RowRule.from_templates("trades", "{owner}", [*topics], when, index=index, origin=origin)
    return rule.with_key(("id",))


def row_change(router: Router, change: Change) -> RowChange:
    (entry,) = router.route(change)
    assert entry.kind is Kind.ROW
    body: RowChange = entry.body
    return body


def test_a_row_change_has_the_columns_that_the_rule_needs() -> None:
    router = Router([], [row_rule()])
    assert router.tables == {"public.trades"}
    new = {"id": 1, "symbol": "AAPL", "owner": 7, "price": AAPL["price"]}
    found = row_change(router, change("insert", AAPL))
    assert (found.rule, found.action, found.old) == (0, "insert", None)
    assert found.new is not None
    assert {name: str(value) for name, value in found.new.items()} == {k: str(v) for k, v in new.items()}


def test_a_row_change_has_of_the_old_row_what_the_wal_gives() -> None:
    router = Router([], [row_rule(when=None)])
    assert row_change(router, change("update", MSFT)).old is None
    assert row_change(router, change("update", MSFT | {"id": 2}, AAPL)).old == {"id": 1}
    assert row_change(router, change("delete", None, AAPL)).old == {"id": 1}
    assert row_change(router, change("delete", None, AAPL, FULL)).old == {"id": 1, "symbol": "AAPL", "owner": 7}
    assert row_change(router, change("truncate")) == RowChange(0, "truncate", None, None)


def test_a_value_that_was_left_alone_is_absent() -> None:
    router = Router([], [row_rule(["t:{config.a}"], None)])
    assert row_change(router, change("update", AAPL | {"config": UNCHANGED})).new == {"id": 1, "owner": 7}


def test_an_sql_rule_is_told_the_users_only() -> None:
    router = Router([], [SqlRule(0, "…", {"public.trades": "owner", "public.other": "usr"}, "here")])
    assert router.tables == {"public.trades", "public.other"}
    assert row_change(router, change("insert", AAPL)) == RowChange(0, "insert", {"user": 7}, None)
    assert row_change(router, change("update", AAPL | {"owner": 8}, AAPL, FULL)) == RowChange(
        0, "update", {"user": 8}, {"user": 7}
    )
    assert row_change(router, change("delete", None, AAPL)) == RowChange(0, "delete", None, {})


def test_the_rules_own_troubles_are_the_routers() -> None:
    rule = RowRule.from_function("trades", "owner", lambda row: row["nothing"], index=0)
    router = Router([], [rule])
    rule.topics({})
    assert router.poisoned == 1
    assert len(router.problems) == 1


# DDL while running


def test_a_column_that_is_gone_breaks_the_routes_that_need_it_until_it_is_back() -> None:
    def at(line: int, topic: str, **options: Any) -> Route:
        return Route.from_templates("trades", origin=f"rowcast.toml:{line}", topic=topic, **options)

    router = Router([at(1, "finance:{symbol}"), at(2, "trade:{id}"), at(3, "p:{id}", columns=["id", "symbol"])])
    without = relation(columns=("id", "price", "owner"))
    assert len(router.route(change("insert", AAPL))) == 3
    row = {"id": 1, "price": "2", "owner": 7}
    assert [entry.topic for entry in router.route(change("insert", row, of=without))] == ["trade:1", "p:1"]
    addressing, sending = router.problems
    assert addressing.startswith(
        "rowcast.toml:1: public.trades has no column 'symbol' any more, so its changes are not"
    )
    assert sending.startswith(
        "rowcast.toml:3: public.trades has no column 'symbol' any more, so the column is not sent"
    )
    assert len(router.route(change("insert", AAPL, of=relation()))) == 3
    assert router.problems == [
        "rowcast.toml:1: public.trades had no column 'symbol' for a time, and its changes in that time were not sent",
        "rowcast.toml:3: public.trades had no column 'symbol' for a time, and it was not sent in that time",
    ]


def test_a_new_column_changes_nothing() -> None:
    router = Router([route()])
    wider = relation(columns=("extra", *TYPES))
    assert sent(router.route(change("insert", AAPL, of=wider))) == [("finance:AAPL", "insert")]


def test_a_broken_rule_takes_its_topics_from_everybody_at_once_and_keeps_the_places_of_the_others() -> None:
    router = Router([route("all")], [row_rule(index=0), row_rule(["x"], None, index=1)])
    without = relation(columns=("id", "symbol", "owner"))
    first = router.route(change("update", AAPL, of=without))
    assert [(entry.body.action if entry.kind is Kind.ROW else entry.topic) for entry in first] == [
        "truncate",
        "update",
        "all",
    ]
    assert [entry.place[1] & 7 for entry in first] == [0, 1, 2]
    assert first[0].body.rule == 0
    second = router.route(change("update", AAPL, of=without))
    assert [(entry.kind, entry.place[1] & 7) for entry in second] == [(Kind.ROW, 1), (Kind.DATA, 2)]
    (problem,) = router.problems
    assert "rowcast.toml:20: public.trades has no column 'price' any more, so nobody has topics by it" in problem
    assert len(router.route(change("update", AAPL, of=relation()))) == 3
    (problem,) = router.problems
    assert "had no column 'price' for a time, and users who were connected then have topics by it again" in problem


def test_a_rule_whose_table_no_longer_tells_which_row_is_gone_takes_its_topics_from_everybody() -> None:
    router = Router([route("all")], [row_rule()])
    for action in ("truncate", "nothing"):
        entries = router.route(change("update", AAPL, of=NAMELESS))
        assert [entry.body.action for entry in entries if entry.kind is Kind.ROW] == [action] * (action == "truncate")
        assert sent(entries) == [("all", "update")]
    (problem,) = router.problems
    assert problem.startswith("rowcast.toml:20: a DELETE from public.trades does not tell which row is gone")


def test_the_same_relation_sent_again_changes_nothing() -> None:
    router = Router([route()], [row_rule()])
    first = [repr(entry) for entry in router.route(change("insert", AAPL))]
    again = Relation(1, "public", "trades", "d", TRADES.columns)
    assert [repr(entry) for entry in router.route(change("insert", AAPL, of=again))] == first


# The configuration


def test_a_route_has_either_topic_or_user() -> None:
    for options in ({}, {"topic": "a", "user": "{b}"}):
        with pytest.raises(ConfigError, match=r"^here: a route has either topic or user"):
            Route.from_templates("t", origin="here", **options)


def test_errors_point_at_the_option_where_that_is_known() -> None:
    origins = {"topic": "f:2", "user": "f:3", "when": "f:4"}
    for options, place in [
        ({"topic": "{"}, "f:2"),
        ({"user": "{"}, "f:3"),
        ({"topic": "a", "when": "?"}, "f:4"),
        ({}, "f:1"),
    ]:
        with pytest.raises(ConfigError, match=f"^{place}: "):
            Route.from_templates("t", origin="f:1", origins=origins, **options)


def test_a_route_tells_what_it_needs() -> None:
    found = route(when="{price} > 0", columns=["id"], key=["owner"])
    assert found.table == "public.trades"
    assert found.addressing == {"symbol", "price"}
    assert found.needed == {"symbol", "price", "id", "owner"}


# An oracle: random rows, conditions and identities

SYMBOLS = st.sampled_from(["A", "B", None])
ROWS = st.fixed_dictionaries(
    {
        "id": st.integers(1, 2),
        "symbol": SYMBOLS,
        "price": st.sampled_from(["0", "1", None]),
        "owner": st.sampled_from([7, 8]),
        "config": st.sampled_from(['{"tags": ["x", "y"]}', '{"tags": ["y"]}', "{}", None]),
    }
)
ROUTES: list[tuple[Route, set[str], Callable[[Row], list[str]]]] = [
    (route(), {"symbol"}, lambda row: [f"finance:{row['symbol']}"] if row["symbol"] else []),
    (
        route("p:{symbol}", when="{price} > 0"),
        {"symbol", "price"},
        lambda row: [f"p:{row['symbol']}"] if row["symbol"] and row["price"] == "1" else [],
    ),
    (
        route("t:{owner}:{config.tags[*]}"),
        {"owner", "config"},
        lambda row: [f"t:{row['owner']}:{tag}" for tag in (msgspec.json.decode(row["config"] or "{}").get("tags", []))],
    ),
    (route("id:{id}"), {"id"}, lambda row: [f"id:{row['id']}"]),
]


@given(
    st.sampled_from(["insert", "update", "delete"]),
    ROWS,
    ROWS,
    st.sampled_from([("d", ("id",)), ("i", ("symbol", "owner")), ("f", tuple(TYPES))]),
    st.sampled_from(["old", "no old"]),
)
def test_the_router_sends_what_the_oracle_says(
    action: Action, new: Row, old: Row, identity: tuple[str, tuple[str, ...]], given_old: str
) -> None:
    kind, key = identity
    of = relation(kind, key)
    # The server tells the old row of every delete, and of an update when it is whole or its key changed.
    tells = action == "delete" or (action == "update" and (kind == "f" or any(new[k] != old[k] for k in key)))
    event = change(action, None if action == "delete" else new, old if tells else None, of)
    expected: list[tuple[str, str]] = []
    for _, needed, topics in ROUTES:
        known = tells and needed <= set(key)
        before = topics(old) if known else []
        if action == "delete":
            expected.extend((topic, "delete") for topic in before)
        else:
            now = topics(new)
            expected.extend((topic, "moved") for topic in before if topic not in now)
            expected.extend((topic, action) for topic in now)
    router = Router([found for found, _, _ in ROUTES])
    entries = router.route(event)
    assert sent(entries) == expected
    assert [entry.place for entry in entries] == [(100, (5 << 20) + n) for n in range(len(entries))]
    assert all(a.place < b.place for a, b in itertools.pairwise(entries))
    assert router.poisoned == 0


# The direct way


def _told(entries: Iterable[Entry]) -> list[tuple[Any, ...]]:
    return [(e.kind, e.place, e.topic, e.xid, e.key, e.event, e.time, e.size, e.body.encode(1 << 20)) for e in entries]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["insert", "update", "read"]),
            st.sampled_from(["AAPL", "a b", "", "x\ny", "é", "1", None, UNCHANGED]),
            st.sampled_from([None, {"id": 1}]),
        ),
        max_size=20,
    ),
    st.sampled_from(["finance:{symbol}", "{symbol}", "{price}:p", "news", "{{news}}"]),
    st.booleans(),
)
def test_what_went_somewhere_before_goes_there_again(
    changes: list[tuple[Action, Any, Row | None]], topic: str, snapshot: bool
) -> None:
    options: dict[str, Any] = {"snapshot": snapshot, "columns": ["symbol", "price"], "numeric": "number"}
    direct = Router([route(topic, **options)])
    # A condition that always holds has every change routed from its decoded row.
    decoded = Router([route(topic, when="{id} = 1", **options)])
    for action, symbol, old in changes:
        row = {"id": 1, "symbol": symbol, "price": "1.50"}
        given_old = old if action == "update" else None
        one, other = (router.route(change(action, row, given_old)) for router in (direct, decoded))
        assert _told(one) == _told(other)
    assert direct.unfit == decoded.unfit


def test_remembered_topics_are_bounded_and_go_with_the_relation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "DIRECT_TOPICS", 3)
    router = Router([route()])
    for _ in range(2):
        for number in range(5):
            assert sent(router.route(change("insert", {"id": 1, "symbol": f"S{number}"})))[0][0] == f"finance:S{number}"
            plan = router._plans[TRADES.oid][1]
            assert plan is not None
            assert len(plan.topics) <= 3
    # The columns changed places: what stands where the symbol stood is another's value.
    turned = relation(columns=["id", "price", "symbol", "owner", "config"])
    found = router.route(change("insert", {"id": 1, "price": "S1", "symbol": "AAPL"}, of=turned))
    assert [entry.topic for entry in found] == ["finance:AAPL"]
