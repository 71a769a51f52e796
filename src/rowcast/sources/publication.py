"""The publication: which tables' changes the server sends.

It is created for the tables that routes and rules name, when that is allowed; else the exact SQL for an
administrator is said. Never with a row filter: one on a column outside the replica identity makes the
application's own UPDATEs fail. Never with a table that has no usable replica identity, for the same reason.

Source: Postgres documentation, section 29.1 "Publication" of chapter "Logical Replication".
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import psycopg

from rowcast.core.catalog import Catalog, quoted
from rowcast.core.validate import unpublishable
from rowcast.errors import SetupError
from rowcast.sources.catalog import only, read_catalog
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

ATTEMPTS = 10
"""Replicas that start together race to change the publication; so often a loser looks again."""

_ANOTHER_WAS_QUICKER = (
    psycopg.errors.DuplicateObject,
    psycopg.errors.UniqueViolation,
    psycopg.errors.InternalError_,  # "tuple concurrently updated" has no code of its own
)

_EXISTS = "SELECT pubviaroot FROM pg_publication WHERE pubname = %s"

# A partition's root is named in pg_publication_rel also where its partitions are published by their own names.
_PUBLISHED = """
SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = %(name)s
UNION
SELECT n.nspname || '.' || c.relname
FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE p.pubname = %(name)s
"""


def create_sql(name: str, tables: Iterable[str]) -> str:
    """The statement that makes the publication."""
    listed = ", ".join(quoted(table) for table in sorted(tables))
    what = f" FOR TABLE {listed}" if listed else ""
    return f'CREATE PUBLICATION "{name}"{what} WITH (publish_via_partition_root = true)'


def add_sql(name: str, tables: Iterable[str]) -> str:
    """The statement that adds tables to the publication."""
    return f'ALTER PUBLICATION "{name}" ADD TABLE {", ".join(quoted(table) for table in sorted(tables))}'


def via_root_sql(name: str) -> str:
    """The statement that has partitions published as their root."""
    return f'ALTER PUBLICATION "{name}" SET (publish_via_partition_root = true)'


async def missing_sql(connection: psycopg.AsyncConnection[Any], name: str, catalog: Catalog) -> list[str]:
    """What must be run for the publication to cover the tables of `catalog`; [] when it does."""
    row = await (await connection.execute(_EXISTS, [name])).fetchone()
    if row is None:
        return [create_sql(name, catalog)]
    statements = []
    if not row[0] and any(table.kind == "p" for table in catalog.values()):
        statements.append(via_root_sql(name))
    cursor = await connection.execute(_PUBLISHED, {"name": name})
    published = {table for (table,) in await cursor.fetchall()}
    if missing := set(catalog) - published:
        statements.append(add_sql(name, missing))
    return statements


async def ensure_publication(
    connection: psycopg.AsyncConnection[Any], name: str, catalog: Catalog, tables: Iterable[str]
) -> None:
    """Have the publication cover `tables`. Raises `SetupError` with what an administrator must run."""
    wanted = only(catalog, tables)
    if refused := unpublishable(wanted):
        raise SetupError(refused[0])
    for attempt in range(ATTEMPTS):
        statements = await missing_sql(connection, name, wanted)
        if not statements:
            return
        for statement in statements:
            try:
                await connection.execute(statement.encode())
                logger.info("schema_changed", "ran: %s", statement)
            except _ANOTHER_WAS_QUICKER:
                await asyncio.sleep(0.05 * attempt)
                break
            except psycopg.Error as error:
                raise SetupError(
                    f"the publication does not cover the tables, and this role can't change that "
                    f"({str(error).splitlines()[0]}); as an administrator, run: {statement}"
                ) from None
    raise SetupError(f"the publication does not cover the tables; as an administrator, run: {statements[0]}")


async def problems(connection: psycopg.AsyncConnection[Any], name: str, tables: Catalog) -> list[str]:
    """What is wrong with the publication now, for tables that were fine at the start; each with what to do."""
    present = await read_catalog(connection, tables)
    named = only(present, tables)
    found = [
        f"{table} no longer exists under this name; what routes it is silent" for table in tables if table not in named
    ]
    found.extend(unpublishable(named))
    found.extend(
        f"the publication does not cover every routed table; run: {statement}"
        for statement in await missing_sql(connection, name, named)
    )
    return found
