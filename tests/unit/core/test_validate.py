"""Validation against the catalogue: what is refused, what is warned about, and what to run."""

from __future__ import annotations

from typing import Any

import pytest

from rowcast.core.catalog import Catalog, ColumnInfo, TableInfo
from rowcast.core.routes import Route
from rowcast.core.rules import RowRule, SqlRule
from rowcast.core.validate import bind, bind_routes, unpublishable, validate
from rowcast.errors import ConfigError

ALL = "; it has id, user_id, symbol, price"
COLUMNS = ("id", "user_id", "symbol", "price")
FULL = 'run: ALTER TABLE "public"."trades" REPLICA IDENTITY FULL'


def table(
    name: str = "trades",
    *,
    identity: str = "d",
    primary: tuple[str, ...] = ("id",),
    known: tuple[str, ...] | None = None,
    kind: str = "r",
    root: str = "",
) -> TableInfo:
    if known is None:
        known = COLUMNS if identity == "f" else primary
    columns = {column: ColumnInfo(25, "text") for column in COLUMNS}
    return TableInfo("public", name, kind, columns, primary, identity, known, root)


def catalog(*tables: TableInfo) -> Catalog:
    return {found.name: found for found in tables or (table(),)}


def route(topic: str = "trade:{id}", of: str = "trades", **options: Any) -> Route:
    return Route.from_templates(of, origin="rowcast.toml:5", topic=topic, **options)


def rule(topic: str = "finance:{symbol}", of: str = "trades", user: str = "{user_id}") -> RowRule:
    return RowRule.from_templates(of, user, [topic], None, index=0, origin="rowcast.toml:9")


def sql_rule(**depends_on: str) -> SqlRule:
    return SqlRule(1, "…", {f"public.{name}": user for name, user in depends_on.items()}, "rowcast.toml:13")


def refusal(*found: Any, tables: Catalog | None = None) -> str:
    routes = [item for item in found if isinstance(item, Route)]
    rules = [item for item in found if not isinstance(item, Route)]
    with pytest.raises(ConfigError) as caught:
        validate(routes, rules, tables or catalog())
    return str(caught.value)


def test_what_is_sound_passes_without_a_warning() -> None:
    assert validate([route()], [rule(), sql_rule(trades="id")], catalog()) == []


def test_an_unknown_table_is_named_with_the_nearest_one() -> None:
    message = refusal(route(of="trade"))
    assert message == "rowcast.toml:5: there is no table public.trade; did you mean 'public.trades'?"
    assert refusal(rule(of="app.users")) == "rowcast.toml:9: there is no table app.users"
    assert refusal(sql_rule(trade="id")).startswith("rowcast.toml:13: there is no table public.trade;")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (route("finance:{symbl}"), "rowcast.toml:5: public.trades has no column 'symbl'; did you mean 'symbol'?"),
        (route(when="{prize} > 0"), "rowcast.toml:5: public.trades has no column 'prize'; did you mean 'price'?"),
        (route(key=["symbols"]), "rowcast.toml:5: public.trades has no column 'symbols'; did you mean 'symbol'?"),
        (
            route(columns=["id", "xyz"]),
            "rowcast.toml:5: public.trades has no column 'xyz'" + ALL,
        ),
        (rule(user="{user}"), "rowcast.toml:9: public.trades has no column 'user'; did you mean 'user_id'?"),
        (rule("{config.a}"), "rowcast.toml:9: public.trades has no column 'config'" + ALL),
        (sql_rule(trades="usr_id"), "rowcast.toml:13: public.trades has no column 'usr_id'; did you mean 'user_id'?"),
    ],
)
def test_an_unknown_column_is_named_with_the_nearest_one(found: Any, message: str) -> None:
    assert refusal(found) == message


def test_the_user_column_of_a_function_must_exist() -> None:
    found = RowRule.from_function("trades", "{user_id}", lambda row: [], index=0)
    message = refusal(found)
    assert "test_validate.py:" in message
    assert message.endswith("public.trades has no column '{user_id}'; did you mean 'user_id'?")


def test_what_is_not_in_the_wal_is_refused() -> None:
    assert "is no table" in refusal(route(), tables=catalog(table(kind="v")))
    message = refusal(route(), tables=catalog(table(root="public.all_trades")))
    assert message.endswith("name public.all_trades instead")


def test_a_row_rule_needs_a_table_whose_rows_can_be_told_apart() -> None:
    message = refusal(rule(), tables=catalog(table(primary=())))
    assert message.startswith("rowcast.toml:9: rows of public.trades can't be told apart")
    assert message.endswith(FULL)
    assert validate([], [rule()], catalog(table(primary=(), identity="f"))) == []
    assert validate([], [rule()], catalog(table(primary=(), identity="i", known=("user_id",)))) == []


def test_a_delete_that_can_not_be_addressed_is_warned_about() -> None:
    (warning,) = validate([route("finance:{symbol}")], [], catalog())
    assert warning.startswith("rowcast.toml:5: a DELETE from public.trades does not tell 'symbol'")
    assert f"{FULL} or set deletes = false" in warning
    (warning,) = validate([route(when="{price} > 0")], [], catalog())
    assert "does not tell 'price'" in warning


def test_no_warning_where_deletes_are_whole_or_not_wanted() -> None:
    found = route("finance:{symbol}", key=["symbol"], conflate=True)
    assert validate([found], [], catalog(table(identity="f"))) == []
    assert validate([found], [], catalog(table(identity="i", known=("symbol",)))) == []
    assert validate([route("finance:{symbol}", deletes=False)], [], catalog()) == []


def test_a_key_that_a_delete_does_not_tell_is_warned_about_if_it_matters() -> None:
    assert validate([route(key=["symbol"])], [], catalog()) == []
    (warning,) = validate([route(key=["symbol"], conflate=True)], [], catalog())
    assert "does not tell 'symbol' of the key, so it is not conflated" in warning


def test_a_function_is_warned_about_since_what_it_needs_is_not_known() -> None:
    found = Route.from_function("trades", lambda change: None)
    (warning,) = validate([found], [], catalog())
    assert "a DELETE from public.trades tells the function id only" in warning
    assert validate([found], [], catalog(table(identity="f"))) == []
    assert validate([Route.from_function("trades", lambda change: None, deletes=False)], [], catalog()) == []


def test_an_sql_rule_is_warned_about_when_the_user_before_is_not_told() -> None:
    (warning,) = validate([], [sql_rule(trades="user_id")], catalog())
    assert warning.startswith("rowcast.toml:13: a DELETE from public.trades, and an UPDATE that gives a row to another")
    assert warning.endswith(FULL)
    assert validate([], [sql_rule(trades="user_id")], catalog(table(identity="f"))) == []


def test_partitions_must_tell_as_much_as_their_root_says() -> None:
    root = table("trades", kind="p", identity="f")
    sound = table("trades_1", identity="f", root="public.trades")
    assert validate([route("finance:{symbol}")], [rule()], catalog(root, sound)) == []
    for found in (route(), rule(), sql_rule(trades="id")):
        message = refusal(found, tables=catalog(root, sound, table("trades_2", root="public.trades")))
        assert "REPLICA IDENTITY FULL, but its partition public.trades_2 has not" in message
        assert """FROM pg_partition_tree('"public"."trades"') LOOP""" in message


def test_a_partition_without_a_replica_identity_is_refused() -> None:
    root = table("trades", kind="p")
    message = refusal(route(), tables=catalog(root, table("trades_2", primary=(), root="public.trades")))
    assert message.startswith(
        "rowcast.toml:5: the partition public.trades_2 has no primary key and no replica identity"
    )
    assert message.endswith('run: ALTER TABLE "public"."trades_2" REPLICA IDENTITY FULL')


def test_what_must_not_be_published_is_told_with_what_to_run() -> None:
    assert unpublishable(catalog()) == []
    (message,) = unpublishable(catalog(table(), table("logs", primary=())))
    assert message.startswith("public.logs has no primary key and no replica identity")
    assert message.endswith('run: ALTER TABLE "public"."logs" REPLICA IDENTITY FULL')


def test_binding_makes_rules_and_routes_complete() -> None:
    tables = catalog(table(identity="f"))
    (bound, sql) = bind([rule(), sql_rule(trades="id")], tables)
    assert isinstance(bound, RowRule)
    assert bound.key == ("id",)
    assert sql == sql_rule(trades="id")
    keyed, named = bind_routes([route(), route(key=["symbol"])], tables)
    assert (keyed.key, named.key) == (("id",), ("symbol",))
    (without,) = bind_routes([route()], catalog(table(identity="f", primary=())))
    assert without.key is None
