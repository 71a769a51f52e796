"""Rate limits over several replicas that share a Redis: one budget, whichever replica is asked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rowcast import Rowcast
from rowcast.testing.local import LocalStream
from rowcast.testing.serving import serving
from rowcast.testing.valkey import ValkeyServer

DATA = Path(__file__).parents[1] / "data"
BEARER = {"authorization": "Bearer from-outside"}


@pytest.fixture
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


def make(valkey: ValkeyServer) -> Rowcast:
    return Rowcast(
        log=valkey.url,
        auth="0123456789abcdef0123456789abcdef",
        api="k",
        limits={"requests": "120/minute"},
        webhooks={"sequin": {"secret": "from-outside"}},
        route=[{"table": "trades", "topic": "finance:{symbol}"}],
    )


async def test_120_requests_spread_over_3_replicas_and_the_121st_is_refused(valkey: ValkeyServer) -> None:
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(serving(make(valkey).asgi())) for _ in range(3)]
        statuses = [(await clients[number % 3].get("/nope")).status_code for number in range(120)]
        assert statuses == [404] * 120
        for client in clients:
            answer = await client.get("/nope")
            assert answer.status_code == 429
            assert 1 <= int(answer.headers["retry-after"]) <= 60


async def test_without_redis_every_request_passes(valkey: ValkeyServer) -> None:
    async with serving(make(valkey).asgi()) as client:
        assert (await client.get("/nope")).headers["ratelimit-remaining"] == "119"
        valkey.kill()
        assert [(await client.get("/nope")).status_code for _ in range(130)] == [404] * 130


async def test_what_comes_by_webhook_at_one_replica_arrives_on_another(valkey: ValkeyServer) -> None:
    first, second = make(valkey), make(valkey)
    async with serving(first.asgi()) as client, second.lifespan():
        stream = LocalStream(second, "ann", ["finance:MSFT"])
        await stream.ready()
        body = (DATA / "sequin/batch.json").read_bytes()
        for appended in (3, 0):
            answer = await client.post("/webhooks/sequin", headers=BEARER, content=body)
            assert answer.json()["appended"] == appended
        await stream.settled()
        assert [event["action"] for event in stream.events()] == ["insert", "update", "delete"]
