"""Redis away in every way that is known: streams stay open, readiness says so and recovers, nothing is lost in silence.

Where the log itself survives, every client has all that was committed, in order, once. Where it does not, each client
is told by `rowcast.reset`, and has everything that was committed after it.

All ways befall the same replicas, one after another: none may leave them worse than it found them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from array import array
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
from redis.exceptions import RedisError

from rowcast.testing.replicas import Replicas
from rowcast.testing.valkey import ValkeyServer

LOST = {"restarted", "flushed"}
"""What makes the log begin anew."""


@contextlib.asynccontextmanager
async def trouble(drill: Any, how: str, seconds: float) -> AsyncIterator[None]:
    """Redis is in trouble for the time of the block; `seconds` are those of a trouble that ends by itself."""
    server = drill.redis
    if how in ("stopped", "restarted"):
        # An orderly stop with a snapshot keeps the log, kill -9 without one is an empty server.
        if how == "stopped":
            with server.client() as client:
                client.save()
            await asyncio.to_thread(server.kill)
        else:
            (server.log.parent / "dump.rdb").unlink(missing_ok=True)
            await asyncio.to_thread(server.kill)
        yield
        await asyncio.to_thread(server.start)
        return
    with server.client() as client:
        if how == "flushed":
            client.flushall()
            yield
        elif how == "paused":
            client.client_pause(round(seconds * 1000), all=True)
            yield
        elif how == "asleep":
            sleeping = asyncio.create_task(asyncio.to_thread(_sleep, server.port, seconds))
            yield
            await sleeping
        elif how == "full":
            client.config_set("maxmemory", "1")
            yield
            client.config_set("maxmemory", "0")
        elif how == "read-only":
            # A replica of nobody: it refuses writes, and goes on answering reads.
            client.replicaof("127.0.0.1", "1")
            yield
            client.replicaof("NO", "ONE")
        elif how == "cut":
            cutting = asyncio.create_task(_cut(client, min(1.0, seconds / 4)))
            yield
            cutting.cancel()


def _sleep(port: int, seconds: float) -> None:
    with redis.Redis(port=port, socket_timeout=seconds + 20) as client:
        client.execute_command("DEBUG", "SLEEP", seconds)


async def _cut(client: redis.Redis, pause: float) -> None:
    while True:
        with contextlib.suppress(RedisError):
            client.client_kill_filter(_type="normal", skipme=True)
        await asyncio.sleep(pause)


@pytest.fixture(scope="module")
def shared(make_drill: Any, shared_database: str) -> Iterator[Any]:
    with ValkeyServer(settings={"enable-debug-command": "yes"}) as server:
        yield make_drill(shared_database, server)


@pytest.fixture(scope="module")
async def replicas(shared: Any) -> AsyncIterator[Replicas]:
    async with shared.replicas(2) as replicas:
        yield replicas


@pytest.mark.parametrize("how", ["stopped", "restarted", "flushed", "paused", "asleep", "full", "read-only", "cut"])
async def test_nothing_is_lost_in_silence(shared: Any, replicas: Replicas, follow: Any, how: str) -> None:
    drill, user_id = shared, f"ann-{how}"
    outage = drill.number("ROWCAST_OUTAGE", 1)
    # Seen at once where Redis refuses or is gone; only by a connection that does not answer where it is frozen.
    noticed = how in ("stopped", "restarted", "full", "read-only") or (how in ("paused", "asleep") and outage > 10)
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(follow(replicas, drill.token(user_id, ["items:x"]), first=at, sticky=True))
            for at in range(2)
        ]
        asked = [await stack.enter_async_context(drill.client(url)) for url in replicas.urls]
        user = await stack.enter_async_context(drill.client(replicas.urls[0], user_id))
        for client in clients:
            await client.until(lambda: client.named("ready"))  # noqa: B023  # awaited at once
        async with drill.writing():
            for client in clients:
                await client.until(lambda: client.taken > 50)  # noqa: B023  # awaited at once
            async with trouble(drill, how, outage):
                began = time.monotonic()
                # What a user switches is answered, and takes effect at its place in the log.
                answer = await user.put("/users/me/channels/items", json={"config": {"kinds": ["y"]}})
                assert answer.status_code == 201
                if noticed:
                    await _ready(asked, 503)
                await asyncio.sleep(max(0.0, outage - (time.monotonic() - began)))
            ended = time.monotonic()
            await _ready(asked, 200)
            back = time.monotonic() - ended
        everything = drill.committed()
        for client in clients:
            await client.until(lambda: client.ids[-1:] == everything[-1:], timeout=60)  # noqa: B023  # at once
            # One connection through all of it.
            assert client.connections == 1
            assert not client.named("bye")
            if how in LOST:
                assert client.named("reset")
                _whole_around_resets(client, everything)
            else:
                assert client.ids == everything
                assert not client.named("reset")
            assert ["items:y"] in [told["added"] for told in client.named("subscriptions")] or how in LOST
    print(f"{how} for {outage:g} s: {len(everything)} changes, ready again {back:.1f} s after; "
          f"resets {[client.named('reset') and client.named('reset')[0]['reason'] for client in clients]}")  # fmt: skip


async def _ready(clients: list[Any], status: int) -> None:
    """Wait until every replica answers so."""
    async with asyncio.timeout(40):
        for client in clients:
            while (await client.get("/readyz")).status_code != status:
                await asyncio.sleep(0.1)


def _whole_around_resets(client: Any, everything: array[int]) -> None:
    """What came is in commit order and once, and has no hole but those that a reset told of."""
    at = {number: place for place, number in enumerate(everything)}
    places = [at[number] for number in client.ids]
    assert places == sorted(set(places))
    holes = sum(after != before + 1 for before, after in itertools.pairwise(places))
    assert holes <= len(client.named("reset"))
