"""Plans: only what is needed is decoded, and only what is known."""

from __future__ import annotations

import msgspec
import pytest

from rowcast.core import values
from rowcast.core.change import UNCHANGED, Column, Relation
from rowcast.core.plan import BoundRoute, BoundRule, Plan, names_of
from rowcast.core.routes import Route
from rowcast.core.rules import RowRule, SqlRule

RELATION = Relation(
    1,
    "public",
    "trades",
    "d",
    (Column("id", 23, key=True), Column("symbol", 25), Column("price", 1700), Column("note", 25)),
)
ROUTE = Route.from_templates("trades", origin="here", topic="{id}:{price}", key=["symbol"], conflate=True)


def plan(*routes: Route) -> Plan:
    return Plan(RELATION, [], [BoundRoute(route, RELATION) for route in routes])


def test_only_needed_columns_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    decode = values.decode

    def watched(column: Column, value: bytes) -> object:
        decoded.append(column.name)
        return decode(column, value)

    monkeypatch.setattr(values, "decode", watched)
    row, failed = plan(ROUTE).pick((b"1", b"AAPL", None, b"long"))
    assert (row, failed) == ({"id": 1, "symbol": "AAPL", "price": None}, None)
    assert decoded == ["id", "symbol"]


def test_of_a_key_only_the_key_is_known_and_what_was_left_alone_is_not() -> None:
    assert plan(ROUTE).pick((b"1", None, None, None), key_only=True) == ({"id": 1}, None)
    row, _ = plan(ROUTE).pick((b"1", b"AAPL", UNCHANGED, b"x"))
    assert row == {"id": 1, "symbol": "AAPL"}
    assert plan(ROUTE).width == 3


def test_a_value_that_can_not_be_decoded_is_null_and_told() -> None:
    row, failed = plan(ROUTE).pick((b"one", b"AAPL", b"2.5", b"x"))
    assert row["id"] is None
    assert row["symbol"] == "AAPL"
    assert isinstance(failed, ValueError)


def test_a_route_is_addressable_by_the_identity_or_not() -> None:
    def addressable(**options: str) -> bool:
        return BoundRoute(Route.from_templates("trades", origin="here", **options), RELATION).addressable

    assert addressable(topic="t:{id}")
    assert addressable(topic="news")
    assert not addressable(topic="t:{id}:{symbol}")
    assert not addressable(topic="t:{id}", when="{price} > 0")
    assert not BoundRoute(Route.from_function("trades", lambda change: None), RELATION).addressable


def broken(topic: str, key: tuple[str, ...] = ("id",), of: Relation = RELATION) -> bool:
    rule = RowRule.from_templates("trades", "{id}", [topic], None, index=0, origin="here").with_key(key)
    return BoundRule(rule, of).broken


def test_a_rule_is_broken_at_a_table_without_its_columns() -> None:
    assert not broken("t:{symbol}")
    assert broken("t:{ticker}")
    assert not BoundRule(SqlRule(0, "…", {"public.trades": "id"}, "here"), RELATION).broken
    assert BoundRule(SqlRule(0, "…", {"public.trades": "usr"}, "here"), RELATION).broken
    assert names_of(RELATION) == {"id", "symbol", "price", "note"}


def test_a_rule_is_broken_at_a_table_that_does_not_tell_which_row_is_gone() -> None:
    whole = tuple(msgspec.structs.replace(column, key=True) for column in RELATION.columns)
    full = msgspec.structs.replace(RELATION, identity="f", columns=whole)
    assert broken("t", ("symbol",))
    assert broken("t", ())
    assert not broken("t", ("symbol",), full)
    assert not broken("t", (), full)
