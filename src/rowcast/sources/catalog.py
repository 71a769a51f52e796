"""Reading the catalogue: what the database says of the tables that routes and rules name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import msgspec
import psycopg

from rowcast.core.catalog import Catalog, ColumnInfo, TableInfo

# Base types of domains, which may be domains themselves.
_DOMAINS = """
WITH RECURSIVE domains (oid, base) AS (
    SELECT oid, typbasetype FROM pg_type WHERE typtype = 'd'
    UNION ALL
    SELECT domains.oid, base.typbasetype FROM domains JOIN pg_type base ON base.oid = domains.base
    WHERE base.typtype = 'd'
)
SELECT domains.oid::bigint, base.oid::bigint,
       CASE WHEN bn.nspname = 'pg_catalog' THEN base.typname::text ELSE bn.nspname || '.' || base.typname END
FROM domains JOIN pg_type base ON base.oid = domains.base
JOIN pg_namespace bn ON bn.oid = base.typnamespace WHERE base.typtype <> 'd'
"""

_TABLES = """
SELECT n.nspname, c.relname, c.relkind::text, c.relreplident::text, coalesce(rn.nspname || '.' || r.relname, ''),
       columns.names, columns.oids, columns.types,
       (SELECT array_agg(a.attname::text ORDER BY k.n)
        FROM pg_index i CROSS JOIN unnest(i.indkey::smallint[]) WITH ORDINALITY k (attnum, n)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        WHERE i.indrelid = c.oid AND i.indisprimary AND k.n <= i.indnkeyatts),
       (SELECT array_agg(a.attname::text ORDER BY k.n)
        FROM pg_index i CROSS JOIN unnest(i.indkey::smallint[]) WITH ORDINALITY k (attnum, n)
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        WHERE i.indrelid = c.oid AND i.indisreplident AND k.n <= i.indnkeyatts)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_class r ON c.relispartition AND r.oid = pg_partition_root(c.oid)
LEFT JOIN pg_namespace rn ON rn.oid = r.relnamespace
LEFT JOIN LATERAL (
    SELECT array_agg(a.attname::text ORDER BY a.attnum) AS names, array_agg(t.oid::bigint ORDER BY a.attnum) AS oids,
           array_agg(CASE WHEN tn.nspname = 'pg_catalog' THEN t.typname::text ELSE tn.nspname || '.' || t.typname END
                     ORDER BY a.attnum) AS types
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace tn ON tn.oid = t.typnamespace
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
) columns ON true
WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND (%(tables)s::text[] IS NULL OR n.nspname || '.' || c.relname = ANY (%(tables)s)
       OR rn.nspname || '.' || r.relname = ANY (%(tables)s))
"""


async def read_catalog(connection: psycopg.AsyncConnection[Any], tables: Iterable[str] | None = None) -> Catalog:
    """The tables named (`schema.table`) and their partitions; None: all, so that near misses can be suggested.

    Changes of a partition are sent as its root's. What its DELETEs carry is decided by its own replica identity,
    but which of these columns are known is said by the root's; so a root's `identity_columns` are () when a
    partition lacks one of them. Raises psycopg.Error.
    """
    cursor = await connection.execute(_DOMAINS)
    bases = {oid: ColumnInfo(base, name) for oid, base, name in await cursor.fetchall()}
    names = None if tables is None else list(tables)
    cursor = await connection.execute(_TABLES, {"tables": names})
    catalog: Catalog = {}
    for row in await cursor.fetchall():
        schema, table, kind, identity, root, columns, oids, types, primary, chosen = row
        info = TableInfo(
            schema,
            table,
            kind,
            {
                name: bases.get(oid) or ColumnInfo(oid, type_name)
                for name, oid, type_name in zip(columns or (), oids or (), types or (), strict=True)
            },
            tuple(primary or ()),
            identity,
            _identity_columns(identity, columns or (), primary, chosen),
            root,
        )
        catalog[info.name] = info
    partitions: dict[str, list[TableInfo]] = defaultdict(list)
    for info in catalog.values():
        if info.partition_of and info.kind == "r":
            partitions[info.partition_of].append(info)
    for name, of_root in partitions.items():
        if name in catalog:
            catalog[name] = _with_partitions(catalog[name], of_root)
    return catalog


def only(catalog: Catalog, tables: Iterable[str]) -> Catalog:
    """The part of a catalogue that concerns some tables."""
    return {table: catalog[table] for table in tables if table in catalog}


def _with_partitions(root: TableInfo, partitions: list[TableInfo]) -> TableInfo:
    if all(partition.identity == "f" for partition in partitions):
        return msgspec.structs.replace(root, identity="f", identity_columns=tuple(root.columns))
    told = [set(partition.identity_columns) for partition in partitions if partition.identity != "f"]
    if all(set(root.identity_columns) <= columns for columns in told):
        return root
    return msgspec.structs.replace(root, identity_columns=())


def _identity_columns(
    identity: str, columns: Iterable[str], primary: list[str] | None, chosen: list[str] | None
) -> tuple[str, ...]:
    """What a DELETE carries (Postgres documentation, ALTER TABLE … REPLICA IDENTITY)."""
    if identity == "f":
        return tuple(columns)
    if identity == "i":
        return tuple(chosen or ())
    return tuple(primary or ()) if identity == "d" else ()
