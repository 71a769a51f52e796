"""The publication: which tables' changes the server sends.

It is created for the tables that routes and rules name, when that is allowed; else the exact SQL for an
administrator is said. Never with a row filter: one on a column outside the replica identity makes the
application's own UPDATEs fail. Never with a table that has no usable replica identity, for the same reason.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import psycopg

from rowcast.core.catalog import Catalog, quoted
from rowcast.core.validate import unpublishable
from rowcast.errors import SetupError
from rowcast.sources.catalog import only

logger = logging.getLogger(__name__)

_PUBLISHED = "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = %s"
_EXISTS = "SELECT pubviaroot FROM pg_publication WHERE pubname = %s"


def create_sql(name: str, tables: Iterable[str]) -> str:
    """The statement that makes the publication."""
    listed = ", ".join(quoted(table) for table in sorted(tables))
    return f'CREATE PUBLICATION "{name}" FOR TABLE {listed} WITH (publish_via_partition_root = true)'


def add_sql(name: str, tables: Iterable[str]) -> str:
    """The statement that adds tables to the publication."""
    return f'ALTER PUBLICATION "{name}" ADD TABLE {", ".join(quoted(table) for table in sorted(tables))}'


def via_root_sql(name: str) -> str:
    """The statement that has partitions published as their root."""
    return f'ALTER PUBLICATION "{name}" SET (publish_via_partition_root = true)'


async def missing_sql(connection: psycopg.AsyncConnection[Any], name: str, catalog: Catalog) -> list[str]:
    """What must be run for the publication to cover the tables of `catalog`; [] when it does."""
    cursor = await connection.execute(_EXISTS, [name])
    row = await cursor.fetchone()
    if row is None:
        return [create_sql(name, catalog)] if catalog else [f'CREATE PUBLICATION "{name}"']
    statements = []
    if not row[0] and any(table.kind == "p" for table in catalog.values()):
        statements.append(via_root_sql(name))
    cursor = await connection.execute(_PUBLISHED, [name])
    published = {row[0] for row in await cursor.fetchall()}
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
    for statement in await missing_sql(connection, name, wanted):
        try:
            await connection.execute(statement.encode())
            logger.info("ran: %s", statement)
        except psycopg.errors.DuplicateObject:
            pass  # another replica that starts now was quicker
        except psycopg.errors.InsufficientPrivilege as error:
            raise SetupError(
                f"the publication does not cover the tables, and this role may not change it "
                f"({str(error).splitlines()[0]}); as an administrator, run: {statement}"
            ) from None
