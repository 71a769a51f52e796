"""psycopg 3: publish in your own transaction, so that it is delivered exactly if that commits.

from rowcast.contrib.psycopg import publish

with psycopg.connect(url) as connection:
    connection.execute("UPDATE orders SET state = 'sent' WHERE id = %s", [number])
    publish(connection, cast, user=customer, event="sent", data={"number": number})
"""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor

from rowcast.cast import Rowcast


def publish(
    connection: Connection[Any] | Cursor[Any],
    cast: Rowcast,
    topic: str | None = None,
    data: Any = None,
    *,
    user: str | None = None,
    event: str | None = None,
    key: str | None = None,
) -> None:
    """Publish as part of the transaction of a connection or cursor; arguments and errors are those of
    `Rowcast.publish_sql`. `cast` need not run in this process. On a connection in autocommit mode it is delivered at
    once."""
    connection.execute(cast.publish_sql(topic, data, user=user, event=event, key=key).encode())


async def apublish(
    connection: AsyncConnection[Any] | AsyncCursor[Any],
    cast: Rowcast,
    topic: str | None = None,
    data: Any = None,
    *,
    user: str | None = None,
    event: str | None = None,
    key: str | None = None,
) -> None:
    """`publish` for an async connection or cursor."""
    await connection.execute(cast.publish_sql(topic, data, user=user, event=event, key=key).encode())
