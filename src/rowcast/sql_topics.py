"""The topics that SQL rules give: one query for many users.

A rule's query is written for one user. For many it becomes

    SELECT u.number, q.topic
    FROM unnest($1::TYPE[]) WITH ORDINALITY AS u(id, number) CROSS JOIN LATERAL (QUERY) AS q(topic)

with `u.id` in the place of the parameter. That means the same only if `u.id` has the very type that the server infers
for the parameter of the query itself (`char = text` compares otherwise than `char = unknown`), so that is asked once,
by PREPARE. Elements of the array are read by the input function of the type, as the parameter is. The aliases are such
that no name in the query can mean them.

A query that can't be asked so (it does not use the parameter, or takes it where no column may stand) is asked for each
user. One that fails for some users is asked for halves, until those are found: they have no topics of it, and hold up
nobody else.

Source: Postgres documentation, "LATERAL Subqueries", "PREPARE" (types of parameters), appendix A (classes of errors).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

import psycopg
from psycopg.errors import QueryCanceled
from psycopg.rows import TupleRow

from rowcast.core import values
from rowcast.core.rules import SqlRule
from rowcast.core.template import fits

Connection = psycopg.AsyncConnection[TupleRow]
Failed = Callable[[SqlRule, psycopg.Error], None]

_PARAMETER = re.compile(r"%(\([^)]*\)[sbt]|.)", re.DOTALL)
_NAME = "rowcast rule"
_ID = '"rowcast user"."rowcast id"'


class SqlTopics:
    """Asks SQL rules, within a transaction. `failed` is told of each user for whom a query fails."""

    def __init__(self, failed: Failed) -> None:
        self._failed = failed
        self._queries: dict[int, str | None] = {}
        """By the rule's index: the query for many users; None when there is none."""

    async def read(self, connection: Connection, rule: SqlRule, users: Sequence[str]) -> dict[str, frozenset[str]]:
        """The topics that a rule gives users. Raises psycopg.Error when the connection fails."""
        if rule.index not in self._queries:
            self._queries[rule.index] = await _shared_query(connection, rule)
        if (query := self._queries[rule.index]) is None:
            return {user: await self._one(connection, rule, user) for user in users}
        return await self._many(connection, rule, query, users)

    async def _many(
        self, connection: Connection, rule: SqlRule, query: str, users: Sequence[str]
    ) -> dict[str, frozenset[str]]:
        if len(users) == 1:
            return {users[0]: await self._one(connection, rule, users[0])}
        try:
            rows = await _guarded(connection, query, {"users": list(users)})
        except psycopg.Error as error:
            _raise_unless_lasting(connection, error)
            if (error.sqlstate or "")[:2] in ("42", "0A"):
                # Not somebody's id, but the form: it will not do for anybody.
                self._queries[rule.index] = None
                return {user: await self._one(connection, rule, user) for user in users}
            half = len(users) // 2
            first = await self._many(connection, rule, query, users[:half])
            return first | await self._many(connection, rule, query, users[half:])
        found: dict[str, set[str]] = defaultdict(set)
        for number, topic in rows:
            if topic is not None and fits(text := values.text(topic)):
                found[users[number - 1]].add(text)
        return {user: frozenset(found[user]) for user in users}

    async def _one(self, connection: Connection, rule: SqlRule, user: str) -> frozenset[str]:
        try:
            rows = await _guarded(connection, rule.sql, {"user": user})
        except psycopg.Error as error:
            _raise_unless_lasting(connection, error)
            self._failed(rule, error)
            return frozenset()
        return frozenset(text for row in rows if row[0] is not None and fits(text := values.text(row[0])))


async def _shared_query(connection: Connection, rule: SqlRule) -> str | None:
    """A rule's query for many users; None when it can't be had."""
    sql = rule.sql.strip().rstrip(";")
    parameters = set(_PARAMETER.findall(sql)) - {"%"}
    if parameters != {"(user)s"}:
        return None
    plain = _PARAMETER.sub(lambda found: "%" if found[1] == "%" else "$1", sql)
    name = f'"{_NAME} {rule.index}"'
    try:
        # Sent as they are: without parameters nothing in them is a placeholder.
        await _guarded(connection, f"PREPARE {name} AS {plain}", None, rows=False)
    except psycopg.Error as error:
        _raise_unless_lasting(connection, error)
        return None
    try:
        rows = await _guarded(
            connection,
            "SELECT parameter_types::text[] FROM pg_prepared_statements WHERE name = %(name)s",
            {"name": name.strip('"')},
        )
    finally:
        await connection.execute(f"DEALLOCATE {name}".encode())
    types = rows[0][0] if rows else []
    if len(types) != 1:
        return None
    shared = _PARAMETER.sub(lambda found: "%%" if found[1] == "%" else _ID, sql)
    # On a line of its own, since the query may end with a comment.
    return (
        f'SELECT "rowcast user"."rowcast number", "rowcast query"."rowcast topic" '
        f'FROM unnest(%(users)s::{types[0]}[]) WITH ORDINALITY AS "rowcast user"("rowcast id", "rowcast number") '
        f'CROSS JOIN LATERAL (\n{shared}\n) AS "rowcast query"("rowcast topic")'
    )


async def _guarded(
    connection: Connection, query: str, parameters: dict[str, object] | None, *, rows: bool = True
) -> list[TupleRow]:
    """Run a query so that its failure does not end the transaction. Raises psycopg.Error."""
    await connection.execute("SAVEPOINT rule")
    try:
        cursor = await connection.execute(query.encode(), parameters)
        found = await cursor.fetchall() if rows else []
    except psycopg.Error:
        if not connection.broken:
            await connection.execute("ROLLBACK TO SAVEPOINT rule")
        raise
    await connection.execute("RELEASE SAVEPOINT rule")
    return found


def _raise_unless_lasting(connection: Connection, error: psycopg.Error) -> None:
    """Raise again what is not the query's fault, and may be over the next time."""
    lasting = not isinstance(error, psycopg.OperationalError) or isinstance(error, QueryCanceled)
    if connection.broken or not lasting:
        raise error
