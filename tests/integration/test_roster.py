"""Counting streams over all replicas, on a real Valkey and a real Redis."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rowcast import Rowcast, roster
from rowcast.asking import connect
from rowcast.roster import KEY, RedisRoster
from rowcast.testing.local import LocalStream
from rowcast.testing.serving import serving
from rowcast.testing.valkey import ValkeyServer

SECRET = "0123456789abcdef0123456789abcdef"
WITH_KEY = {"authorization": "Bearer k"}

BEATING = """
import asyncio, sys
from rowcast.asking import connect
from rowcast.roster import RedisRoster
asyncio.run(RedisRoster(connect(sys.argv[1], "rowcast:replicas"), "dead", "dead", lambda: 7).run())
"""


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[ValkeyServer]:
    program = Path("/usr/bin/redis-server") if request.param == "redis" else None
    with ValkeyServer(program=program) as running:
        yield running


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as running:
        yield running


@contextlib.asynccontextmanager
async def replica(url: str, name: str) -> AsyncIterator[tuple[Rowcast, httpx.AsyncClient]]:
    cast = Rowcast(log=url, auth=SECRET, api="k", server={"name": name})
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


async def test_every_replica_counts_the_streams_of_all(server: ValkeyServer) -> None:
    async with replica(server.url, "a") as (cast_a, a):
        async with replica(server.url, "b") as (cast_b, b):
            for user in ("u", "v"):
                await LocalStream(cast_a, user).ready()
            await LocalStream(cast_b, "w").ready()
            for client in (a, b):
                await until(client, {"count": 3, "replicas": {"a": 2, "b": 1}})
        # It has taken itself away: nobody has to wait until it expires.
        assert await counted(a) == {"count": 2, "replicas": {"a": 2}}


async def test_replicas_of_one_name_are_counted_together(valkey: ValkeyServer) -> None:
    async with replica(valkey.url, "x") as (_, a), replica(valkey.url, "x") as (cast, _):
        await LocalStream(cast, "u").ready()
        await until(a, {"count": 1, "replicas": {"x": 1}})


async def test_a_replica_that_was_killed_is_counted_no_more(
    valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "EXPIRY", 2.0)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", BEATING, valkey.url)
    async with replica(valkey.url, "a") as (_, a):
        await until(a, {"count": 7, "replicas": {"a": 0, "dead": 7}})
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        await until(a, {"count": 0, "replicas": {"a": 0}})
        with contextlib.closing(valkey.client()) as client:
            async with asyncio.timeout(20):
                while client.hkeys(KEY) == [b"dead"] or len(client.hkeys(KEY)) > 1:
                    await asyncio.sleep(0.02)


async def test_what_somebody_else_wrote_there_is_no_replica(valkey: ValkeyServer) -> None:
    with contextlib.closing(valkey.client()) as client:
        client.hset(KEY, "odd", "not JSON")
        client.hset(KEY, "old", '{"at":1,"name":"old","streams":3}')
        client.hset(KEY, b"\xff", '{"at":"x"}')
        async with replica(valkey.url, 'quoted "ü" %d') as (_, a), replica(valkey.url, "b") as (_, b):
            await until(b, {"count": 0, "replicas": {'quoted "ü" %d': 0, "b": 0}})
            await until(a, {"count": 0, "replicas": {'quoted "ü" %d': 0, "b": 0}})
        assert client.hkeys(KEY) == []


async def test_without_redis_it_is_a_503_and_comes_back(valkey: ValkeyServer) -> None:
    async with replica(valkey.url, "a") as (_, a), replica(valkey.url, "b") as (_, b):
        await until(a, {"count": 0, "replicas": {"a": 0, "b": 0}})
        valkey.kill()
        answer = await a.get("/events/count", headers=WITH_KEY)
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
        assert "Redis can't be asked" in answer.json()["error"]
        valkey.start()
        for client in (a, b):
            await until(client, {"count": 0, "replicas": {"a": 0, "b": 0}})


async def test_leaving_without_redis_does_not_fail(valkey: ValkeyServer) -> None:
    leaving = RedisRoster(connect(valkey.url, KEY), "id", "a", lambda: 0)
    valkey.kill()
    await leaving.leave()
