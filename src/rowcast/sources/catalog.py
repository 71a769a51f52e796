"""Reading the catalogue: what the database says of the tables that routes and rules name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import psycopg

from rowcast.core.catalog import Catalog, ColumnInfo, TableInfo

_TABLES = """
SELECT n.nspname, c.relname, c.relkind::text, c.relreplident::text,
       coalesce((SELECT rn.nspname || '.' || r.relname FROM pg_class r JOIN pg_namespace rn ON rn.oid = r.relnamespace
                 WHERE c.relispartition AND r.oid = pg_partition_root(c.oid)), ''),
       (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
       (SELECT array_agg(coalesce(nullif(t.typbasetype, 0), t.oid)::bigint ORDER BY a.attnum)
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
       (SELECT array_agg(b.typname::text ORDER BY a.attnum)
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        JOIN pg_type b ON b.oid = coalesce(nullif(t.typbasetype, 0), t.oid)
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
       (SELECT array_agg(a.attname::text ORDER BY k.n) FROM pg_index i
        CROSS JOIN unnest(i.indkey::smallint[]) WITH ORDINALITY k(attnum, n)
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
        WHERE i.indrelid = c.oid AND i.indisprimary AND k.n <= i.indnkeyatts),
       (SELECT array_agg(a.attname::text ORDER BY k.n) FROM pg_index i
        CROSS JOIN unnest(i.indkey::smallint[]) WITH ORDINALITY k(attnum, n)
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
        WHERE i.indrelid = c.oid AND i.indisreplident AND k.n <= i.indnkeyatts)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_' AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""


async def read_catalog(connection: psycopg.AsyncConnection[Any]) -> Catalog:
    """Every table of the database, by `schema.table`: also those not named, to suggest near misses.

    Raises psycopg.Error.
    """
    cursor = await connection.execute(_TABLES)
    catalog: Catalog = {}
    for row in await cursor.fetchall():
        schema, table, kind, identity, root, names, oids, types, primary, chosen = row
        columns = {
            name: ColumnInfo(oid, type_name)
            for name, oid, type_name in zip(names or (), oids or (), types or (), strict=True)
        }
        info = TableInfo(
            schema,
            table,
            kind,
            columns,
            tuple(primary or ()),
            identity,
            _identity_columns(identity, columns, primary, chosen),
            root,
        )
        catalog[info.name] = info
    return catalog


def only(catalog: Catalog, tables: Iterable[str]) -> Catalog:
    """The part of a catalogue that concerns some tables."""
    return {table: catalog[table] for table in tables if table in catalog}


def _identity_columns(
    identity: str, columns: Iterable[str], primary: list[str] | None, chosen: list[str] | None
) -> tuple[str, ...]:
    """What a DELETE carries (Postgres documentation, ALTER TABLE … REPLICA IDENTITY)."""
    if identity == "f":
        return tuple(columns)
    if identity == "i":
        return tuple(chosen or ())
    return tuple(primary or ()) if identity == "d" else ()
