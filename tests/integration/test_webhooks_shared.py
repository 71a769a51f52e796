"""Webhooks into a log on Redis or Valkey: whatever is sent again, and to whichever replica, is in the log once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from rowcast import Rowcast
from rowcast.logs import redis as redis_log
from rowcast.logs.redis_store import ONCE
from rowcast.testing.local import LocalStream
from rowcast.testing.serving import serving
from rowcast.testing.valkey import ValkeyServer

BEARER = {"authorization": "Bearer from-outside"}
SECRET = "0123456789abcdef0123456789abcdef"


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
async def replica(valkey: ValkeyServer, **webhooks: Any) -> AsyncIterator[tuple[Rowcast, httpx.AsyncClient]]:
    cast = Rowcast(
        log=valkey.url,
        auth=SECRET,
        api="k",
        webhooks={"sequin": {"secret": "from-outside"}} | webhooks,
        route=[{"table": "trades", "topic": "t"}],
    )
    async with serving(cast.asgi()) as client:
        yield cast, client


def message(number: int) -> dict[str, Any]:
    return {
        "record": {"id": number},
        "changes": None,
        "action": "insert",
        "metadata": {
            "table_schema": "public",
            "table_name": "trades",
            "idempotency_key": f"key-{number}",
            "commit_timestamp": "2026-11-24T19:17:34.548348Z",
        },
    }


async def post(client: httpx.AsyncClient, *numbers: int) -> Any:
    body = msgspec.json.encode({"data": [message(number) for number in numbers]})
    answer = await client.post("/webhooks/sequin", headers=BEARER, content=body)
    return answer.json() if answer.status_code == 200 else answer


async def delivered(stream: LocalStream) -> list[int]:
    await stream.settled()
    return [record["id"] for record in stream.records()]


async def test_a_delivery_that_is_retried_at_another_replica_is_in_the_log_once(server: ValkeyServer) -> None:
    async with replica(server) as (cast, a), replica(server) as (_, b):
        stream = LocalStream(cast, "u", ["t"])
        await stream.ready()
        assert await post(a, 1, 2, 3) == {"records": 3, "appended": 3, "repeated": 0, "ignored": 0}
        assert await post(b, 2, 3, 4) == {"records": 3, "appended": 1, "repeated": 2, "ignored": 0}
        assert await delivered(stream) == [1, 2, 3, 4]
    async with replica(server) as (_, c):  # started anew, and yet it knows
        assert (await post(c, 1, 4))["repeated"] == 2


async def test_the_same_at_several_replicas_at_the_same_moment(server: ValkeyServer) -> None:
    async with contextlib.AsyncExitStack() as stack:
        casts, clients = zip(*[await stack.enter_async_context(replica(server)) for _ in range(3)], strict=True)
        stream = LocalStream(casts[0], "u", ["t"])
        await stream.ready()
        numbers = range(60)
        answers = await asyncio.gather(*(post(client, *numbers) for client in clients for _ in range(2)))
        assert sum(answer["appended"] for answer in answers) == len(numbers)
        assert sum(answer["repeated"] for answer in answers) == 5 * len(numbers)
        assert sorted(await delivered(stream)) == list(numbers)


async def test_a_record_whose_fate_was_unknown_is_in_the_log_once(
    valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_log, "APPEND_TIMEOUT", 0.3)
    async with replica(valkey) as (cast, a), replica(valkey) as (_, b):
        stream = LocalStream(cast, "u", ["t"])
        await stream.ready()
        assert (await post(a, 1))["appended"] == 1
        valkey.pause()
        answer = await post(a, 2)
        assert answer.status_code == 503
        assert "unknown" in answer.json()["error"]
        # What was sent is in its socket: it does that first.
        valkey.resume()
        await stream.until(lambda: len(stream.records()) == 2)
        assert (await post(b, 2, 3))["repeated"] == 1
        assert await delivered(stream) == [1, 2, 3]


async def test_a_record_that_was_refused_is_taken_when_it_comes_again(valkey: ValkeyServer) -> None:
    async with replica(valkey) as (cast, a), replica(valkey) as (_, b):
        stream = LocalStream(cast, "u", ["t"])
        await stream.ready()
        with contextlib.closing(valkey.client()) as client:
            client.config_set("maxmemory", "1")
            answer = await post(a, 1)
            assert answer.status_code == 503
            assert "maxmemory" in answer.json()["error"]
            assert not client.keys(ONCE + "*")
            client.config_set("maxmemory", "0")
        assert (await post(b, 1))["appended"] == 1
        assert (await post(a, 1))["repeated"] == 1
        assert await delivered(stream) == [1]


async def test_while_redis_is_away_it_is_a_503(valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_log, "APPEND_TIMEOUT", 0.3)
    async with replica(valkey) as (_, a):
        valkey.kill()
        answer = await post(a, 1)
        assert answer.status_code == 503
        assert "retry-after" in answer.headers


async def test_what_is_remembered_goes_after_a_while(valkey: ValkeyServer) -> None:
    async with replica(valkey, remember="30s") as (_, a):
        await post(a, 1, 2)
        with contextlib.closing(valkey.client()) as client:
            keys = client.keys(ONCE + "*")
            assert len(keys) == 2
            assert all(0 < client.ttl(key) <= 30 for key in keys)


async def test_bad_records_are_counted(valkey: ValkeyServer) -> None:
    async with replica(valkey) as (_, a):
        body = msgspec.json.encode({"data": [message(1), {"record": 5}]})
        assert (await a.post("/webhooks/sequin", headers=BEARER, content=body)).status_code == 400
        metrics = (await a.get("/metrics", headers={"authorization": "Bearer k"})).text
        assert "rowcast_poisoned_rows_total 1.0" in metrics
