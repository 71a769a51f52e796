"""Checking routes and rules against the database's catalogue, before anything is served.

A partitioned table is published as its root, but what a DELETE or UPDATE carries is decided by the partition
that the row is in, and `ALTER TABLE … REPLICA IDENTITY` on the root does not reach the partitions: so they are
looked at too.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from rowcast.core.catalog import Catalog, TableInfo, quoted
from rowcast.core.inversion import Inversion
from rowcast.core.routes import Route
from rowcast.core.rules import RowRule, Rule
from rowcast.errors import ConfigError

MAX_NAMED = 20
"""Columns that an error names."""


def validate(routes: Sequence[Route], rules: Sequence[Rule], catalog: Catalog) -> list[str]:
    """Check that every table and column exists and that rows can be told apart.

    `catalog` holds all tables of the database: partitions, and those that are meant by a misspelt name.
    Returns warnings: what works, but not for every change, with what to do. Raises `ConfigError` that begins
    with the file's line or the function.
    """
    warnings: list[str] = []
    for route in routes:
        table = _table(route.table, route.origin, catalog)
        _columns(route.needed, table, route.origin)
        if route.snapshot:
            Inversion.of(route, table)
        _check_interval(route, table)
        warnings.extend(_route_warnings(route, table, catalog))
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
                        f"{rule.origin}: a DELETE from {name}, and an UPDATE that gives a row to another user, does "
                        f"not tell the {user!r} it was, who therefore keeps the topics until the next connect; "
                        f"run: {_full(table)}"
                    )
    return warnings


def bind(rules: Sequence[Rule], catalog: Catalog) -> list[Rule]:
    """The rules with their tables' keys and columns known. To be called after `validate`."""
    return [rule.bound(catalog[rule.table]) if isinstance(rule, RowRule) else rule for rule in rules]


def bind_routes(routes: Sequence[Route], catalog: Catalog) -> list[Route]:
    """The routes with their tables' primary keys known. To be called after `validate`."""
    return [route.bound(catalog[route.table]) for route in routes]


def unpublishable(catalog: Catalog) -> list[str]:
    """What must be run before tables without a usable replica identity are published.

    With its UPDATEs published, such a table would refuse the application's own UPDATE and DELETE.
    """
    return [_refusal(table) for table in catalog.values() if not table.identity_columns]


def _refusal(table: TableInfo) -> str:
    return (
        f"{table.name} has no primary key and no replica identity, and publishing it would make the "
        f"application's own UPDATE and DELETE fail; run: {_full(table)}"
    )


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
    for partition in catalog.values():
        if partition.partition_of == name and partition.kind == "r":
            _partition(partition, table, origin)
    return table


def _partition(partition: TableInfo, root: TableInfo, origin: str) -> None:
    if not partition.identity_columns:
        raise ConfigError(f"{origin}: the partition {_refusal(partition)}")
    if root.identity == "f" and partition.identity != "f":
        # The server would call the old row whole, and send NULL for all but the partition's key.
        raise ConfigError(
            f"{origin}: {root.name} has REPLICA IDENTITY FULL, but its partition {partition.name} has not; "
            f"run: {_full(root)}"
        )


def _columns(needed: Iterable[str], table: TableInfo, origin: str) -> None:
    for column in sorted(needed):
        if column not in table.columns:
            near = _near(column, table.columns) or f"; it has {', '.join(list(table.columns)[:MAX_NAMED])}"
            raise ConfigError(f"{origin}: {table.name} has no column {column!r}{near}")


def _identified(rule: RowRule, table: TableInfo) -> None:
    if not table.identity_columns:
        raise ConfigError(
            f"{rule.origin}: rows of {table.name} can't be told apart, as it has no primary key and no replica "
            f"identity; add a primary key, or run: {_full(table)}"
        )


def _check_interval(route: Route, table: TableInfo) -> None:
    if route.min_interval and route.key is None and not table.primary_key and table.identity == "f":
        raise ConfigError(
            f"{route.origin}: min_interval goes by the row's key, and {table.name} has no primary key; name columns by "
            "key = […]"
        )


def _route_warnings(route: Route, table: TableInfo, catalog: Catalog) -> Iterable[str]:
    if not route.deletes or table.identity == "f":
        return
    if route.function is not None:
        known = ", ".join(table.identity_columns)
        yield (
            f"{route.origin}: a DELETE from {table.name} tells the function {known} only, and one that needs "
            f"another column can't address it; run: {_full(table)} or set deletes=False on the route"
        )
        return
    missing = sorted(route.addressing - set(table.identity_columns))
    if missing:
        yield (
            f"{route.origin}: a DELETE from {table.name} does not tell {missing[0]!r}, so it can't be addressed; "
            f"run: {_full(table)} or set deletes = false on the route"
        )
    elif (route.conflate or route.min_interval) and (
        unknown := sorted(set(route.key or ()) - set(table.identity_columns))
    ):
        yield (
            f"{route.origin}: a DELETE from {table.name} does not tell {unknown[0]!r} of the key, so it is not "
            f"conflated with the row's other changes; run: {_full(table)}"
        )


def _full(table: TableInfo) -> str:
    """The statement after which an UPDATE or DELETE tells the whole row before."""
    if table.kind != "p":
        return f"ALTER TABLE {quoted(table.name)} REPLICA IDENTITY FULL"
    root = quoted(table.name).replace("'", "''")
    return (
        f"DO $$ DECLARE t regclass; BEGIN FOR t IN SELECT relid FROM pg_partition_tree('{root}') LOOP "
        "EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', t); END LOOP; END $$ "
        "(it does not reach partitions from their root, nor those that are made later)"
    )


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {near[0]!r}?" if near else ""
