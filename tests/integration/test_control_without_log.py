"""Control that is asked for while the log is away: in force here at once, and kept for the others."""

from __future__ import annotations

import asyncio

import psycopg

from rowcast import Rowcast
from rowcast.auth.jwt import mint
from rowcast.testing.local import LocalStream
from rowcast.testing.postgres import PostgresServer

SECRET = "0123456789abcdef0123456789abcdef"


async def test_a_disconnect_while_postgres_is_away_holds_here_now_and_everywhere_later() -> None:
    with PostgresServer() as postgres:
        here, there = (Rowcast(postgres=postgres.url(), auth=SECRET) for _ in range(2))
        async with here.lifespan(), there.lifespan():
            mine, theirs = LocalStream(here, "ann"), LocalStream(there, "ann")
            await mine.ready()
            await theirs.ready()
            await asyncio.to_thread(postgres.stop)
            await here.disconnect("ann")
            assert mine.events("rowcast.bye") == [{"reason": "disconnected"}]
            assert len(here.replica.pending) == 1
            assert not theirs.events("rowcast.bye")
            await asyncio.to_thread(postgres.start)
            await theirs.until(lambda: bool(theirs.events("rowcast.bye")))
            grant = await there.authenticator.verify(mint(there.config, "ann"))
            assert grant.user == "ann"
            with psycopg.connect(postgres.url()) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
