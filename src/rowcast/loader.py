"""Reading users' subscription rows in one snapshot, for the hub to join to the log's tail.

Rows are read in text form and decoded by the very code that decodes the WAL, so that a value read here
equals the same value when it comes by in the log.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from rowcast.core import values
from rowcast.core.audience import Reading
from rowcast.core.catalog import Catalog, TableInfo
from rowcast.core.change import Column
from rowcast.core.position import Place
from rowcast.core.rules import RowRule, SqlRule
from rowcast.core.snapshot import Snapshot
from rowcast.core.subscriptions import Load, UserRows
from rowcast.errors import Unavailable
from rowcast.sql_topics import SqlTopics
from rowcast.telemetry.journal import get_logger, words

logger = get_logger(__name__)

PAGE = 100
"""Rows of a whole table that are fetched at once: what else runs here waits while they are decoded."""

FAILURE_INTERVAL = 60.0
"""Seconds between two log lines about an SQL rule that fails."""

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_TEXTS = frozenset({"text", "varchar", "bpchar", "name"})
_RANGES = {"int2": 1 << 15, "int4": 1 << 31, "int8": 1 << 63}


class PostgresLoader:
    """Reads the rules' rows from the primary.

    `pool` gives connections, in autocommit mode; `catalog` knows the rules' tables; `mark` puts a mark into
    the WAL and returns its place: the hub has seen everything that was committed before once it passed it.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]],
        rules: Sequence[RowRule | SqlRule],
        catalog: Catalog,
        mark: Callable[[], Awaitable[Place]],
    ) -> None:
        self._pool = pool
        self._rules = rules
        self._catalog = catalog
        self._mark = mark
        self.failures = 0
        """How often an SQL rule failed for a user."""
        self._told: dict[int, float] = {}
        self._topics = SqlTopics(self._failed)

    async def load(self, users: list[str]) -> Load:
        """Read all rules for all `users` in one REPEATABLE READ transaction, then mark the WAL.

        Raises `Unavailable` when the database can't be asked.
        """
        read = {user: UserRows() for user in users}
        try:
            async with self._pool.connection() as connection:
                # One snapshot for all rules: taken by the first query of the transaction.
                await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                try:
                    snapshot = await _snapshot(connection)
                    for rule in self._rules:
                        if isinstance(rule, RowRule):
                            await self._read_rows(connection, rule, read)
                        else:
                            found = await self._topics.read(connection, rule, users)
                            for user, topics in found.items():
                                read[user].topics[rule.index] = topics
                finally:
                    await connection.execute("COMMIT")
            return Load(await self._mark(), read, snapshot)
        except (psycopg.Error, PoolTimeout, PoolClosed) as error:
            raise Unavailable(f"Postgres can't be asked for subscriptions: {words(error)}", what="postgres") from error

    async def read_all(self, reading: Reading) -> tuple[Snapshot, Place]:
        """Read the rows of all users into `reading`, in one REPEATABLE READ transaction, then mark the WAL.

        Returns the snapshot and the place that the hub must pass. Raises `Unavailable` when the database can't be
        asked.
        """
        try:
            async with self._pool.connection() as connection:
                await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                try:
                    snapshot = await _snapshot(connection)
                    for index in reading.indexes.values():
                        await self._read_table(connection, index.rule, reading)
                finally:
                    await connection.execute("ROLLBACK")
            return snapshot, await self._mark()
        except (psycopg.Error, PoolTimeout, PoolClosed) as error:
            raise Unavailable(f"Postgres can't be asked for all users: {words(error)}", what="postgres") from error

    async def _read_table(self, connection: psycopg.AsyncConnection[TupleRow], rule: RowRule, reading: Reading) -> None:
        table = self._catalog[rule.table]
        columns, name = _from(rule, table)
        query = sql.SQL("DECLARE rowcast_all NO SCROLL CURSOR FOR SELECT {} FROM {} WHERE {} IS NOT NULL")
        await connection.execute(query.format(columns, name, sql.Identifier(rule.user_column)))
        while True:
            cursor = await connection.execute(f"FETCH {PAGE} FROM rowcast_all".encode())
            for row in _decoded(cursor, rule, table):
                reading.add(rule.index, row)
            if cursor.rowcount < PAGE:
                break
        await connection.execute("CLOSE rowcast_all")

    async def horizon(self) -> Snapshot:
        """A fresh snapshot. Raises `Unavailable` when the database can't be asked."""
        try:
            async with self._pool.connection() as connection:
                return await _snapshot(connection)
        except (psycopg.Error, PoolTimeout, PoolClosed) as error:
            raise Unavailable(f"Postgres can't be asked for a snapshot: {words(error)}", what="postgres") from error

    async def _read_rows(
        self, connection: psycopg.AsyncConnection[TupleRow], rule: RowRule, read: dict[str, UserRows]
    ) -> None:
        table = self._catalog[rule.table]
        query, accepts = rows_query(rule, table)
        accepted = [user for user in read if accepts(user)]
        if not accepted:
            return
        cursor = await connection.execute(query, [accepted])
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in _decoded(cursor, rule, table):
            found[values.text(row[rule.user_column])].append(row)
        for user, rows in found.items():
            if user in read:
                read[user].rows[rule.index] = rows

    def _failed(self, rule: SqlRule, error: psycopg.Error) -> None:
        self.failures += 1
        now = time.monotonic()
        if now - self._told.get(rule.index, -FAILURE_INTERVAL) >= FAILURE_INTERVAL:
            self._told[rule.index] = now
            logger.warning(
                "rule_query_failed",
                "%s: the query failed for a user, who has no topics of it: %s",
                rule.origin,
                words(error),
                rule=rule.origin,
            )


def rows_query(rule: RowRule, table: TableInfo) -> tuple[sql.Composed, Callable[[str], bool]]:
    """The query for a rule's rows of some users, and the test whether a user id can stand in its column.

    Ids are compared in the column's own type, so that its index serves, and only those that are written as
    Postgres writes them can match: the log names users by that text.
    """
    type_name = table.columns[rule.user_column].type_name
    column = sql.Identifier(rule.user_column)
    accepts: Callable[[str], bool] = lambda user: "\0" not in user  # noqa: E731
    if type_name in _RANGES:
        limit = _RANGES[type_name]
        accepts = lambda user: bool(_INTEGER.fullmatch(user)) and -limit <= int(user) < limit  # noqa: E731
    elif type_name == "uuid":
        accepts = lambda user: bool(_UUID.fullmatch(user))  # noqa: E731
    if type_name in _RANGES or type_name == "uuid" or type_name in _TEXTS or type_name.endswith(".citext"):
        where = sql.SQL("{} = ANY(%s::text[]::{}[])").format(column, sql.Identifier(*type_name.split(".", 1)))
    else:
        where = sql.SQL("{}::text = ANY(%s::text[])").format(column)
    return sql.SQL("SELECT {} FROM {} WHERE {}").format(*_from(rule, table), where), accepts


def _from(rule: RowRule, table: TableInfo) -> tuple[sql.Composable, sql.Composable]:
    """The columns that a rule needs, and the table."""
    columns = sql.SQL(", ").join(sql.Identifier(name) for name in sorted(rule.columns))
    return columns, sql.Identifier(table.schema, table.table)


def _decoded(cursor: psycopg.AsyncCursor[TupleRow], rule: RowRule, table: TableInfo) -> Iterator[dict[str, Any]]:
    """The rows that a query of `_from` gave, their values as those of the log."""
    result = cursor.pgresult
    assert result is not None
    columns = [
        Column(name, result.ftype(i), result.fmod(i), type_name=table.columns[name].type_name)
        for i, name in enumerate(sorted(rule.columns))
    ]
    for number in range(result.ntuples):
        yield {
            column.name: None if (value := result.get_value(number, i)) is None else values.decode(column, value)
            for i, column in enumerate(columns)
        }


async def _snapshot(connection: psycopg.AsyncConnection[TupleRow]) -> Snapshot:
    cursor = await connection.execute("SELECT pg_current_snapshot()::text")
    row = await cursor.fetchone()
    assert row is not None
    return Snapshot.parse(row[0])
