"""Names of tables."""

from __future__ import annotations

from rowcast.core.catalog import TableInfo, qualified, quoted


def test_public_is_implied() -> None:
    assert qualified("trades") == "public.trades"
    assert qualified("app.trades") == "app.trades"


def test_names_are_quoted_as_identifiers() -> None:
    assert quoted('app.Tra"des') == '"app"."Tra""des"'


def test_a_table_has_its_whole_name() -> None:
    assert TableInfo("app", "trades", "r", {}, (), "d", ()).name == "app.trades"
