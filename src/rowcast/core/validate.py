"""Checking routes and rules against the database's catalogue, before anything is served."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from rowcast.core.catalog import Catalog, TableInfo, quoted
from rowcast.core.routes import Route
from rowcast.core.rules import RowRule, Rule
from rowcast.errors import ConfigError


def validate(routes: Sequence[Route], rules: Sequence[Rule], catalog: Catalog) -> list[str]:
    """Check that every table and column exists and that rows can be told apart.

    Returns warnings: what works, but not for every change, with what to do. Raises `ConfigError` that begins
    with the file's line or the function.
    """
    warnings: list[str] = []
    for route in routes:
        table = _table(route.table, route.origin, catalog)
        _columns(route.needed, table, route.origin)
        warnings.extend(_route_warnings(route, table))
    for rule in rules:
        if isinstance(rule, RowRule):
            table = _table(rule.table, rule.origin, catalog)
            _columns(rule.columns | {rule.user_column}, table, rule.origin)
            _identified(rule, table)
        else:
            for name, user in rule.depends_on.items():
                table = _table(name, rule.origin, catalog)
                _columns({user}, table, rule.origin)
                if user not in table.identity_columns:
                    warnings.append(
                        f"{rule.origin}: a DELETE from {name} does not tell {user!r}, so it refreshes nobody; "
                        f"run: {_full(name)}"
                    )
    return warnings


def bind(rules: Sequence[Rule], catalog: Catalog) -> list[Rule]:
    """The rules with their tables' keys and columns known. To be called after `validate`."""
    return [rule.bound(catalog[rule.table]) if isinstance(rule, RowRule) else rule for rule in rules]


def unpublishable(catalog: Catalog) -> list[str]:
    """What must be run before tables without a usable replica identity are published.

    With its UPDATEs published, such a table would refuse the application's own UPDATE and DELETE.
    """
    return [
        f"{table.name} has no primary key and no replica identity, and publishing it would make the "
        f"application's own UPDATE and DELETE fail; run: {_full(table.name)}"
        for table in catalog.values()
        if not table.identity_columns
    ]


def _table(name: str, origin: str, catalog: Catalog) -> TableInfo:
    table = catalog.get(name)
    if table is None:
        raise ConfigError(f"{origin}: there is no table {name}{_near(name, catalog)}")
    if table.partition_of:
        raise ConfigError(
            f"{origin}: {name} is a partition, and partitions are published as their root; "
            f"name {table.partition_of} instead"
        )
    if table.kind not in ("r", "p"):
        raise ConfigError(f"{origin}: {name} is no table, so its changes are not in the WAL; name its tables")
    return table


def _columns(needed: Iterable[str], table: TableInfo, origin: str) -> None:
    for column in sorted(needed):
        if column not in table.columns:
            raise ConfigError(f"{origin}: {table.name} has no column {column!r}{_near(column, table.columns)}")


def _identified(rule: RowRule, table: TableInfo) -> None:
    if not table.identity_columns:
        raise ConfigError(
            f"{rule.origin}: rows of {table.name} can't be told apart, as it has no primary key and no replica "
            f"identity; add a primary key, or run: {_full(table.name)}"
        )


def _route_warnings(route: Route, table: TableInfo) -> list[str]:
    if not route.deletes:
        return []
    missing = sorted(route.addressing - set(table.identity_columns))
    if not missing:
        return []
    warning = (
        f"{route.origin}: a DELETE from {table.name} does not tell {missing[0]!r}, so it can't be addressed; "
        f"run: {_full(table.name)} or set deletes = false on the route"
    )
    return [warning]


def _full(name: str) -> str:
    return f"ALTER TABLE {quoted(name)} REPLICA IDENTITY FULL"


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {near[0]!r}?" if near else ""
