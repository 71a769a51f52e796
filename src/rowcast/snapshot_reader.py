"""Reading the current rows of topics in one transaction, whose snapshot says which others it saw.

One query for each route that can send to any of the topics, by the topics' columns; what it finds goes through the
route again. Rows are read in text form and written by the very code that writes changes (`core.pages`).

Postgres documentation, chapter 13.2 "Transaction Isolation": REPEATABLE READ has one snapshot for all its queries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from rowcast.core.catalog import Catalog, TableInfo
from rowcast.core.change import Column, Relation
from rowcast.core.fill import Read
from rowcast.core.inversion import Inversion, Narrowing, Reading, element_texts
from rowcast.core.pages import RouteRows, TopicPages
from rowcast.core.position import Place
from rowcast.core.routes import Route
from rowcast.core.snapshot import Snapshot
from rowcast.errors import ConfigError, SetupError, Unavailable
from rowcast.ports import TooEarly, TooLong
from rowcast.sources.catalog import read_catalog
from rowcast.spool import Budget, Spool
from rowcast.telemetry.journal import words

Pool = AsyncConnectionPool[psycopg.AsyncConnection[tuple[Any, ...]]]
Connection = psycopg.AsyncConnection[tuple[Any, ...]]

ROWS = 100
"""Rows fetched at once: what the loop is held up by, and what libpq holds in memory."""

# Not the view pg_publication_tables: it locks every published table, so that one of them could hold up the others.
_PUBLISHED = """
SELECT a.attname, pg_get_expr(r.prqual, r.prrelid)
FROM pg_attribute a
LEFT JOIN pg_publication p ON p.pubname = %s
LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = a.attrelid
WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped
AND CASE WHEN r.prattrs IS NOT NULL THEN a.attnum = ANY (r.prattrs::int2[]) ELSE a.attgenerated = '' END
ORDER BY a.attnum
"""

_PUBLISHED_18 = _PUBLISHED.replace("ELSE a.attgenerated = ''", "ELSE a.attgenerated IN ('', p.pubgencols)")

_PUBLISHED_14 = """
SELECT a.attname, NULL FROM pg_attribute a
WHERE %s::text IS NOT NULL AND a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped
AND a.attgenerated = ''
ORDER BY a.attnum
"""


class SnapshotReader:
    """Reads topics' rows.

    `pool` gives connections in autocommit mode; `routes` are those with `snapshot`, bound to their tables;
    `publication` says which columns and rows are in the WAL at all; `mark` puts a mark into the WAL and returns its
    place. `timeout` in seconds bounds each transaction, `budget` the room for rows, `max_event` a row, in bytes.

    Raises `ConfigError` when a route's topics can't be turned into a query.
    """

    def __init__(
        self,
        pool: Pool,
        routes: Sequence[Route],
        catalog: Catalog,
        mark: Callable[[], Awaitable[Place]],
        *,
        publication: str,
        timeout: float,
        budget: Budget,
        max_event: int,
    ) -> None:
        self._pool = pool
        self._routes = [(route, Inversion.of(route, catalog[route.table])) for route in routes]
        self._mark = mark
        self._publication = publication
        self._budget = budget
        self._max_event = max_event
        self.timeout = timeout
        self.poisoned = 0

    def covers(self, topic: str) -> bool:
        """Whether any of the routes can send to the topic."""
        return any(inversion.covers(topic) for _, inversion in self._routes)

    async def check(self) -> None:
        """Raises `SetupError` when a table may not be read."""
        tables = sorted({route.table for route, _ in self._routes})
        async with self._pool.connection() as connection:
            for table in tables:
                schema, _, name = table.partition(".")
                quoted = sql.Identifier(schema, name).as_string(connection)
                cursor = await connection.execute("SELECT has_table_privilege(%s::regclass, 'SELECT')", [quoted])
                row = await cursor.fetchone()
                if row is None or not row[0]:
                    user = connection.info.user
                    raise SetupError(f'snapshots of {table} need: GRANT SELECT ON {quoted} TO "{user}"')

    async def horizon(self) -> Snapshot:
        """A fresh snapshot. Raises `Unavailable` when the database can't be asked."""
        try:
            async with self._pool.connection() as connection:
                return await _snapshot(connection)
        except (psycopg.Error, PoolTimeout, PoolClosed) as error:
            raise Unavailable(f"Postgres can't be asked for a snapshot: {words(error)}", what="postgres") from error

    async def read(
        self, topics: Sequence[str], accepts: Callable[[Snapshot], bool], position: Callable[[Place], str]
    ) -> Read:
        """Read the rows of all `topics` in one REPEATABLE READ transaction.

        `accepts` is asked whether the transaction's snapshot will do; `position` writes a place. Raises `TooEarly`
        when it does not, `TooLong` when the transaction is not through in time, `spool.Crowded` when there is no
        room for the rows now, and `Unavailable` when the database can't be asked.
        """
        try:
            async with asyncio.timeout(self.timeout + 5), self._pool.connection() as connection:
                milliseconds = max(1, round(self.timeout * 1000))
                await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                for setting, value in (
                    ("statement_timeout", milliseconds),
                    ("idle_in_transaction_session_timeout", milliseconds),
                ):
                    # A replica that freezes must not hold back the whole database's vacuum.
                    await connection.execute(sql.SQL("SET LOCAL {} = {}").format(sql.Identifier(setting), value))
                # A policy that hides rows from us must not make them silently absent: then it is an error.
                await connection.execute("SET LOCAL row_security = off")
                try:
                    async with asyncio.timeout(self.timeout):
                        return await self._read(connection, topics, accepts, position)
                finally:
                    if not connection.broken:
                        await connection.rollback()
        except TimeoutError:
            raise TooLong from None
        except psycopg.errors.QueryCanceled as error:
            raise TooLong from error
        except (psycopg.Error, PoolTimeout, PoolClosed) as error:
            raise Unavailable(f"Postgres can't be asked for rows: {words(error)}", what="postgres") from error

    def failed(self, topic: str, reason: str, position: str) -> Spool:
        """The one page of a topic whose rows can't be had."""
        spool = Spool(self._budget)
        pages = TopicPages(topic, spool, position=position, max_event=self._max_event)
        pages.fail(reason)
        pages.finish()
        return spool

    async def _read(
        self,
        connection: Connection,
        topics: Sequence[str],
        accepts: Callable[[Snapshot], bool],
        position: Callable[[Place], str],
    ) -> Read:
        snapshot = await _snapshot(connection)
        if not accepts(snapshot):
            raise TooEarly
        # At once: the sooner the mark, the less of the tail must be compared with the snapshot.
        after = await self._mark()
        spools = {topic: Spool(self._budget) for topic in topics}
        where = position(after)
        pages = {
            topic: TopicPages(topic, spool, position=where, max_event=self._max_event)
            for topic, spool in spools.items()
        }
        catalog = await read_catalog(connection, {route.table for route, _ in self._routes})
        for route, inversion in self._routes:
            readings: dict[Reading, None] = {}
            wanted: list[TopicPages] = []
            for topic in topics:
                found = inversion.readings(topic)
                if found is None:
                    pages[topic].fail("ambiguous")
                elif found:
                    readings.update(dict.fromkeys(found))
                    wanted.append(pages[topic])
            if wanted and route.table in catalog:
                await self._read_route(connection, route, inversion, list(readings), wanted, catalog[route.table])
        for one in pages.values():
            one.finish()
        return Read(snapshot, after, dict(spools))

    async def _read_route(
        self,
        connection: Connection,
        route: Route,
        inversion: Inversion,
        readings: list[Reading],
        wanted: list[TopicPages],
        table: TableInfo,
    ) -> None:
        names, row_filter = await self._published(connection, table)
        if not names or not (route.addressing | frozenset(route.key or ())) <= set(names):
            return  # the router, too, sends nothing while a column is missing
        source = sql.Identifier(table.schema, table.table)
        where, values = condition(inversion.narrowings, readings)
        clauses = [where] if where is not None else []
        if row_filter:
            # As the server shows it: what the publication leaves out never comes in the WAL.
            clauses.append(sql.SQL("({})").format(sql.SQL(_trusted(row_filter))))
        query = sql.SQL("DECLARE rows NO SCROLL CURSOR FOR SELECT {} FROM {}{}{}").format(
            sql.SQL(", ").join(sql.Identifier(name) for name in names),
            sql.SQL("" if table.kind == "p" else "ONLY "),
            source,
            sql.SQL(" WHERE ") + sql.SQL(" AND ").join(clauses) if clauses else sql.SQL(""),
        )
        await connection.execute(query, values)
        rows: RouteRows | None = None
        fetch = sql.SQL("FETCH {} FROM rows").format(ROWS)
        while True:
            result = (await connection.execute(fetch)).pgresult
            assert result is not None
            if rows is None:
                identity = set(table.identity_columns)
                columns = tuple(
                    Column(
                        name,
                        result.ftype(i),
                        result.fmod(i),
                        key=name in identity,
                        type_name=table.columns[name].type_name,
                    )
                    for i, name in enumerate(names)
                )
                rows = RouteRows(route, Relation(0, table.schema, table.table, table.identity, columns), wanted)
            for number in range(result.ntuples):
                rows.add(tuple(result.get_value(number, i) for i in range(len(names))))
            if result.ntuples < ROWS:
                break
        await connection.execute("CLOSE rows")
        self.poisoned += rows.poisoned

    async def _published(self, connection: Connection, table: TableInfo) -> tuple[list[str], str | None]:
        """The columns that the WAL tells of a table, and the publication's row filter, if it has one."""
        version = connection.info.server_version
        query = _PUBLISHED_18 if version >= 180000 else _PUBLISHED if version >= 150000 else _PUBLISHED_14
        regclass = sql.Identifier(table.schema, table.table).as_string(connection)
        cursor = await connection.execute(query.encode(), [self._publication, regclass])
        found = await cursor.fetchall()
        return [row[0] for row in found], found[0][1] if found else None


def condition(narrowings: Sequence[Narrowing], readings: Sequence[Reading]) -> tuple[sql.Composed | None, list[Any]]:
    """What WHERE must say so that every row of the readings is found, and its parameters; None: all rows.

    Raises `ConfigError` for a narrowing of an unknown kind.
    """
    scalar = [i for i, one in enumerate(narrowings) if one.how in ("own", "text")]
    clauses: list[sql.Composable] = []
    values: list[Any] = []
    if len(scalar) == 1:
        clauses.append(_any(narrowings[scalar[0]]))
        values.append(_distinct(readings, scalar[0]))
    elif scalar:
        names = [sql.Identifier(f"v{i}") for i in scalar]
        columns = sql.SQL(", ").join(_left(narrowings[i]) for i in scalar)
        casts = sql.SQL(", ").join(
            sql.SQL("{}::{}").format(name, _type(narrowings[i])) for i, name in zip(scalar, names, strict=True)
        )
        lists = sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(scalar))
        clauses.append(
            sql.SQL("({}) IN (SELECT {} FROM unnest({}) AS given ({}))").format(
                columns, casts, lists, sql.SQL(", ").join(names)
            )
        )
        values.extend([reading[i] for reading in readings] for i in scalar)
    for i, one in enumerate(narrowings):
        if i in scalar:
            continue
        column, given = sql.Identifier(one.column), _distinct(readings, i)
        if one.how == "json":
            clauses.append(_or_text(one, sql.SQL("{} #>> {} = ANY (%s::text[])").format(column, list(one.path))))
            values.append(given)
        elif one.how == "element":
            found = sql.SQL("{} #> {} @> ANY (%s::jsonb[])").format(column, list(one.path))
            clauses.append(_or_text(one, found))
            values.append([text for value in given for text in element_texts(value)])
        elif one.how == "array":
            clauses.append(sql.SQL("{} && %s::text[]::{}[]").format(column, sql.Identifier(one.type_name)))
            values.append(given)
        else:
            raise ConfigError(f"a column can't be compared {one.how!r}")
    return (sql.SQL(" AND ").join(clauses), values) if clauses else (None, [])


def _any(one: Narrowing) -> sql.Composed:
    if one.how == "text":
        return sql.SQL("{} = ANY (%s::text[])").format(_left(one))
    return sql.SQL("{} = ANY (%s::text[]::{}[])").format(_left(one), _type(one))


def _left(one: Narrowing) -> sql.Composable:
    column = sql.Identifier(one.column)
    return sql.SQL("{}::text").format(column) if one.how == "text" else column


def _type(one: Narrowing) -> sql.Composable:
    return sql.Identifier(*(one.type_name or "text").split(".", 1))


def _or_text(one: Narrowing, found: sql.Composed) -> sql.Composed:
    """A text within a jsonb may hold JSON of its own, into which a template's path goes too."""
    if not one.path and one.how == "json":
        return found
    return sql.SQL("({} OR jsonb_typeof({}) = 'string')").format(found, sql.Identifier(one.column))


def _distinct(readings: Sequence[Reading], number: int) -> list[str]:
    return list(dict.fromkeys(reading[number] for reading in readings))


def _trusted(text: Any) -> LiteralString:
    """The server's own words, with nothing in them that psycopg would take for a parameter."""
    words: LiteralString = str(text).replace("%", "%%")
    return words


async def _snapshot(connection: Connection) -> Snapshot:
    cursor = await connection.execute("SELECT pg_current_snapshot()::text")
    row = await cursor.fetchone()
    assert row is not None
    return Snapshot.parse(row[0])
