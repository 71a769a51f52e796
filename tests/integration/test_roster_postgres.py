"""Counting streams over all replicas with a postgres log: nothing but sessions."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import psycopg
import pytest

from rowcast import Rowcast
from rowcast.roster_postgres import PostgresRoster
from rowcast.testing.local import LocalStream
from rowcast.testing.postgres import PostgresServer
from rowcast.testing.serving import serving

SECRET = "0123456789abcdef0123456789abcdef"
WITH_KEY = {"authorization": "Bearer k"}

BEATING = """
import asyncio, sys
from rowcast.roster_postgres import PostgresRoster
asyncio.run(
    PostgresRoster(sys.argv[1], None, slot="rowcast", replica="dead", name="dead", streams=lambda: 7).run()
)
"""


@contextlib.asynccontextmanager
async def replica(url: str, name: str, **postgres: Any) -> AsyncIterator[tuple[Rowcast, httpx.AsyncClient]]:
    cast = Rowcast(postgres={"url": url, **postgres}, auth=SECRET, api="k", server={"name": name})
    async with serving(cast.asgi()) as client:
        yield cast, client


async def counted(client: httpx.AsyncClient) -> Any:
    answer = await client.get("/events/count", headers=WITH_KEY)
    return answer.json() if answer.status_code == 200 else answer.status_code


async def until(client: httpx.AsyncClient, expected: Any) -> None:
    """Wait until a replica answers so."""
    async with asyncio.timeout(20):
        while await counted(client) != expected:
            await asyncio.sleep(0.02)


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


async def test_every_replica_counts_the_streams_of_all(database: str) -> None:
    long = "x" * 60 + "-tail"
    async with replica(database, "a") as (cast_a, a):
        async with replica(database, "ü #%b") as (cast_b, b), replica(database, long) as (_, c):
            for user in ("u", "v"):
                await LocalStream(cast_a, user).ready()
            await LocalStream(cast_b, "w").ready()
            async with asyncio.timeout(20):
                while len(seen := (await counted(a))["replicas"]) < 3:
                    await asyncio.sleep(0.02)
            (short,) = (name for name in seen if name.endswith("-tail"))
            assert 20 < len(short) < 60
            for client in (a, b):
                await until(client, {"count": 3, "replicas": {"a": 2, "ü #%b": 1, short: 0}})
            # Of itself a replica knows the whole name.
            await until(c, {"count": 3, "replicas": {"a": 2, "ü #%b": 1, long: 0}})
        await until(a, {"count": 2, "replicas": {"a": 2}})


async def test_another_service_in_the_database_and_other_peoples_sessions(database: str) -> None:
    async with replica(database, "a") as (cast, a), replica(database, "b", slot="other", publication="other") as (_, b):
        await LocalStream(cast, "u").ready()
        assert isinstance(cast.replica.roster, PostgresRoster)
        odd = cast.replica.roster._service + "x#many#y"
        async with await psycopg.AsyncConnection.connect(database, application_name=odd):
            await until(a, {"count": 1, "replicas": {"a": 1}})
            await until(b, {"count": 0, "replicas": {"b": 0}})


async def test_a_replica_that_was_killed_is_counted_no_more(database: str) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", BEATING, database)
    async with replica(database, "a") as (_, a):
        await until(a, {"count": 7, "replicas": {"a": 0, "dead": 7}})
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        await until(a, {"count": 0, "replicas": {"a": 0}})


async def test_without_postgres_it_is_a_503_and_comes_back(own_server: PostgresServer) -> None:
    url = own_server.create_database("roster")
    async with replica(url, "a") as (cast, a), replica(url, "b"):
        await LocalStream(cast, "u").ready()
        await until(a, {"count": 1, "replicas": {"a": 1, "b": 0}})
        own_server.kill()
        assert await counted(a) == 503
        own_server.start()
        await until(a, {"count": 1, "replicas": {"a": 1, "b": 0}})


async def test_a_session_that_was_ended_is_made_again(database: str) -> None:
    async with replica(database, "a") as (_, a), replica(database, "b") as (_, _):
        await until(a, {"count": 0, "replicas": {"a": 0, "b": 0}})
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE starts_with(application_name, 'rowcast#')"
            )
        await until(a, {"count": 0, "replicas": {"a": 0, "b": 0}})


async def test_a_role_without_rights_sees_it(database: str, postgres: PostgresServer) -> None:
    async with replica(database, "a") as (cast, a):
        await until(a, {"count": 0, "replicas": {"a": 0}})
        roster = cast.replica.roster
        assert isinstance(roster, PostgresRoster)
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("CREATE ROLE nobody_at_all")
            connection.execute("SET ROLE nobody_at_all")
            found = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE starts_with(application_name, %s)", [roster._service]
            ).fetchone()
            connection.execute("RESET ROLE")
            connection.execute("DROP ROLE nobody_at_all")
        assert found == (1,)
