"""The tables that routes and rules name, their replica identity, and the publication."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from rowcast.check.results import Look, Result
from rowcast.core.catalog import Catalog, quoted
from rowcast.core.routes import Router
from rowcast.core.validate import unpublishable, validate
from rowcast.errors import ConfigError
from rowcast.sources.catalog import only, read_catalog
from rowcast.sources.publication import missing_sql

_MAY_CREATE = """
SELECT has_database_privilege(current_database(), 'CREATE')
   AND coalesce(bool_and(pg_has_role(c.relowner, 'USAGE')), true)
   AND coalesce((SELECT pg_has_role(pubowner, 'USAGE') FROM pg_publication WHERE pubname = %(name)s), true)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname || '.' || c.relname = ANY (%(tables)s)
"""

_NARROWED = """
SELECT p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate,
       (SELECT array_agg(n.nspname || '.' || c.relname)
        FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE r.prpubid = p.oid AND (to_jsonb(r) ->> 'prqual' IS NOT NULL OR to_jsonb(r) ->> 'prattrs' IS NOT NULL))
FROM pg_publication p WHERE p.pubname = %s
"""


async def check_tables(look: Look) -> AsyncIterator[Result]:
    """Whether the configuration fits the database. Raises psycopg.Error."""
    catalog = await read_catalog(look.connection)
    try:
        warnings = validate(look.routes, look.rules, catalog)
    except ConfigError as error:
        yield Result("configuration", False, str(error), "change it there")
        return
    wanted = only(catalog, Router(look.routes, look.rules).tables)
    yield Result("configuration", True, f"{len(wanted)} tables are routed or read by rules")
    refused = _remarks(unpublishable(wanted), ok=False)
    cures = tuple(result.fix for result in refused)
    remarks = [result for result in _remarks(warnings, ok=True) if not result.fix.startswith(cures)]
    for result in refused + remarks:
        yield result
    if not refused:
        if not remarks:
            yield Result("replica identity", True, "every table has what its routes and rules need")
        async for result in _publication(look, wanted):
            yield result


async def _publication(look: Look, wanted: Catalog) -> AsyncIterator[Result]:
    name = look.postgres.publication
    statements = await missing_sql(look.connection, name, wanted)
    if statements:
        [(may,)] = await look.rows(_MAY_CREATE, {"name": name, "tables": list(wanted)})
        run_it = f"run: {'; '.join(statements)}"
        if may:
            yield Result("publication", True, f"{name!r} will be made or changed at start", run_it)
        else:
            yield Result(
                "publication",
                False,
                f"{name!r} does not cover the tables, and {look.connection.info.user} may not change that",
                f"as an administrator, {run_it}",
            )
        return
    for whole, narrowed in await look.rows(_NARROWED, [name]):
        if not whole:
            yield Result(
                "publication",
                True,
                f"{name!r} leaves out some kinds of changes",
                f"""run: ALTER PUBLICATION "{name}" SET (publish = 'insert, update, delete, truncate')""",
            )
        for table in sorted(set(narrowed or ()) & set(wanted)):
            yield Result(
                "publication",
                True,
                f"{name!r} has a row filter or a column list on {table}: what it leaves out is never seen",
                f'run: ALTER PUBLICATION "{name}" DROP TABLE {quoted(table)}; and ADD TABLE without them',
            )
    yield Result("publication", True, f"{name!r} covers {len(wanted)} tables")


def _remarks(texts: Sequence[str], *, ok: bool) -> list[Result]:
    """What validation says of tables; each text ends with what to run."""
    results = []
    for text in texts:
        detail, _, fix = text.partition("; run: ")
        results.append(Result("replica identity", ok, detail, f"run: {fix}" if fix else "look at it"))
    return results
