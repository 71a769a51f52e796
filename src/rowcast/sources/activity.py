"""Transactions that are in our way: what a new slot waits for, and what keeps the WAL from being let go."""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg

_BLOCKING = """
SELECT blocking.pid, coalesce(usename, ''), coalesce(application_name, ''), coalesce(state, ''),
       coalesce(extract(epoch FROM now() - xact_start), 0)::bigint,
       (SELECT gid FROM pg_prepared_xacts WHERE blocking.pid = 0 ORDER BY prepared LIMIT 1)
FROM unnest(pg_blocking_pids(%s)) AS blocking (pid) LEFT JOIN pg_stat_activity activity USING (pid) LIMIT 1
"""

_OLDEST = """
SELECT pid, name, application, state, seconds, gid FROM (
    SELECT pid, coalesce(usename, '') AS name, coalesce(application_name, '') AS application,
           coalesce(state, '') AS state, extract(epoch FROM now() - xact_start)::bigint AS seconds,
           NULL AS gid, age(backend_xid) AS age
    FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
    UNION ALL
    SELECT 0, owner, '', 'prepared', extract(epoch FROM now() - prepared)::bigint, gid, age(transaction)
    FROM pg_prepared_xacts
) AS transactions ORDER BY age DESC LIMIT 1
"""


class OpenTransaction(msgspec.Struct, frozen=True):
    """A transaction that has an xid and has not ended. `gid` is set, and `pid` 0, for a prepared one."""

    pid: int
    user: str
    application: str
    state: str
    seconds: int
    gid: str | None

    def __str__(self) -> str:
        """Who it is, and how to end it."""
        if self.gid is not None:
            return f"the prepared transaction {self.gid!r}; run: COMMIT PREPARED or ROLLBACK PREPARED '{self.gid}'"
        who = ", ".join(part for part in (self.user, self.application, self.state) if part)
        return (
            f"a transaction of session {self.pid} ({who}), open for {self.seconds} s; end it, or run: "
            f"SELECT pg_terminate_backend({self.pid})"
        )


async def blocking(connection: psycopg.AsyncConnection[Any], pid: int) -> OpenTransaction | None:
    """The transaction that the session `pid` waits for. Raises psycopg.Error."""
    row = await (await connection.execute(_BLOCKING, [pid])).fetchone()
    return None if row is None else OpenTransaction(*row)


async def oldest_transaction(connection: psycopg.AsyncConnection[Any]) -> OpenTransaction | None:
    """The oldest transaction with an xid: what keeps every slot's WAL from being let go. Raises psycopg.Error.

    Other roles' transactions are seen only by members of pg_read_all_stats.
    """
    row = await (await connection.execute(_OLDEST)).fetchone()
    return None if row is None else OpenTransaction(*row)
