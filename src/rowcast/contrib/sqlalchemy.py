"""SQLAlchemy: publish in your own transaction, so that it is delivered exactly if that commits.

    from rowcast.contrib.sqlalchemy import publish

    with Session(engine) as session:
        session.add(order)
        publish(session, cast, user=order.customer_id, event="ordered", data={"number": order.number})
        session.commit()

It goes with the transaction, and with a savepoint (`begin_nested`) that is rolled back it is gone. Any driver will do.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from rowcast.cast import Rowcast
from rowcast.errors import ConfigError


def publish(
    session: Session | Connection,
    cast: Rowcast,
    topic: str | None = None,
    data: Any = None,
    *,
    user: str | None = None,
    event: str | None = None,
    key: str | None = None,
) -> None:
    """Publish as part of the transaction of a session or connection; arguments and errors are those of
    `Rowcast.publish_sql`. `cast` need not run in this process."""
    connection = session.connection() if isinstance(session, Session) else session
    # By the driver: as a text() each message would be compiled, and push the application's statements out of the cache.
    connection.exec_driver_sql(cast.publish_sql(topic, data, user=user, event=event, key=key)).close()


async def apublish(
    session: AsyncSession | AsyncConnection,
    cast: Rowcast,
    topic: str | None = None,
    data: Any = None,
    *,
    user: str | None = None,
    event: str | None = None,
    key: str | None = None,
) -> None:
    """`publish` for an async session or connection."""
    connection = await session.connection() if isinstance(session, AsyncSession) else session
    await connection.exec_driver_sql(cast.publish_sql(topic, data, user=user, event=event, key=key))


def database_url(engine: Engine | AsyncEngine | URL | str) -> str:
    """The connection string of an engine's database, as `[postgres] url` wants it: without the driver's name.

    Query options go along, since they are libpq's with every driver but asyncpg. Raises `ConfigError` when it is no
    Postgres.
    """
    url = engine.url if isinstance(engine, (Engine, AsyncEngine)) else engine
    if isinstance(url, str):
        from sqlalchemy import make_url

        url = make_url(url)
    if url.get_backend_name() != "postgresql":
        raise ConfigError(
            f"Rowcast reads changes from Postgres, and this engine's database is {url.get_backend_name()}"
        )
    if url.get_driver_name() == "asyncpg":
        url = url.set(query={})
    return url.set(drivername="postgresql").render_as_string(hide_password=False)
