"""Invalidation: users' keys in a real Valkey or Redis are gone before an entry is delivered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from rowcast import Rowcast, cache
from rowcast.errors import ConfigError
from rowcast.testing.local import LocalStream
from rowcast.testing.valkey import ValkeyServer

SECRET = "0123456789abcdef0123456789abcdef"
KEYS = ["cache:dashboard:{user}", "cache:other:{user}"]


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
async def running(valkey: ValkeyServer, **sections: Any) -> AsyncIterator[Rowcast]:
    """A log in memory, so that only the cache depends on the server."""
    cast = Rowcast(log="memory:", cache={"invalidate": KEYS, "url": valkey.url}, auth=SECRET, api="k", **sections)
    async with cast.lifespan():
        yield cast


class Watched(LocalStream):
    """Notes which keys are there at the moment at which an event is taken."""

    def __init__(self, cast: Rowcast, user: str, valkey: ValkeyServer, **options: Any) -> None:
        self.client = valkey.client()
        self.cached: list[bool] = []
        self.patient = True
        super().__init__(cast, user, ["t"], **options)

    def _read(self) -> None:
        before = len(self.blocks)
        super()._read()
        if any(block.event == "message" for block in self.blocks[before:]) and self.patient:
            self.cached.append(bool(self.client.exists(f"cache:dashboard:{self._opened[0].grant.user}")))


def fill(valkey: ValkeyServer, *users: str) -> None:
    with contextlib.closing(valkey.client()) as client:
        for user in users:
            client.set(f"cache:dashboard:{user}", "old")
            client.set(f"cache:other:{user}", "old")


def unlinks(valkey: ValkeyServer) -> int:
    with contextlib.closing(valkey.client()) as client:
        stats: Any = client.info("commandstats")
        return int(stats.get("cmdstat_unlink", {}).get("calls", 0))


async def test_the_keys_are_gone_before_the_delivery(server: ValkeyServer) -> None:
    async with running(server) as cast:
        stream = Watched(cast, "ann", server)
        await stream.ready()
        for number in range(20):
            fill(server, "ann", "bob")
            await cast.publish("t", number)
            await stream.until(lambda number=number: len(stream.events()) > number)  # type: ignore[misc]
        assert [event["data"] for event in stream.events()] == list(range(20))
        assert stream.cached == [False] * 20
        with contextlib.closing(server.client()) as client:
            assert sorted(client.keys("cache:*")) == [b"cache:dashboard:bob", b"cache:other:bob"]


async def test_a_burst_costs_one_deletion(valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "SPACING", 0.5)
    async with running(valkey) as cast:
        streams = [Watched(cast, "ann", valkey) for _ in range(2)]
        for stream in streams:
            await stream.ready()
        fill(valkey, "ann")
        await asyncio.gather(*(cast.publish("t", number) for number in range(200)))
        for stream in streams:
            await stream.until(lambda stream=stream: len(stream.events()) == 200)  # type: ignore[misc]
            assert [event["data"] for event in stream.events()] == list(range(200))
            assert not any(stream.cached)
        # One, or two where the burst was longer than the way to the server.
        assert unlinks(valkey) <= 2 * len(KEYS)


async def test_what_came_after_the_deletion_was_sent_waits_for_the_next(valkey: ValkeyServer) -> None:
    async with running(valkey) as cast:
        stream = Watched(cast, "ann", valkey)
        await stream.ready()
        invalidation = cast.hub.cache
        assert invalidation is not None
        sent, answered = asyncio.Event(), asyncio.Event()
        pipeline = invalidation._redis.pipeline

        def slow(**options: Any) -> Any:
            pipe = pipeline(**options)
            execute = pipe.execute

            async def delayed() -> Any:
                answer = await execute()
                sent.set()
                await answered.wait()
                return answer

            pipe.execute = delayed
            return pipe

        invalidation._redis.pipeline = slow  # type: ignore[method-assign]
        await cast.publish("t", 1)
        await sent.wait()
        # Somebody fills the cache anew, without what is changed now.
        fill(valkey, "ann")
        await cast.publish("t", 2)
        answered.set()
        await stream.until(lambda: len(stream.events()) >= 1)
        assert [event["data"] for event in stream.events()] == [1]
        await stream.until(lambda: len(stream.events()) == 2)
        assert stream.cached == [True, False]


async def test_a_server_that_hangs_delays_nobody_for_long_and_is_made_good(
    valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "AWAY_PAUSE", 0.1)
    async with running(valkey) as cast:
        stream = Watched(cast, "ann", valkey)
        await stream.ready()
        fill(valkey, "ann")
        stream.patient = False
        valkey.pause()
        async with asyncio.timeout(20):
            for number in range(50):
                await cast.publish("t", number)
            await stream.until(lambda: len(stream.events()) == 50)
        assert cast.hub.cache is not None
        assert cast.hub.cache.late > 0
        assert cast.hub.cache.failures > 0
        valkey.resume()
        with contextlib.closing(valkey.client()) as client:
            async with asyncio.timeout(20):
                while client.keys("cache:*"):
                    await asyncio.sleep(0.02)
        metrics = cast.metrics.expose().decode()
        assert 'rowcast_cache_deletions_total{outcome="failed"}' in metrics


async def test_others_are_not_held_up(valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PATIENCE", 60.0)
    async with running(valkey) as cast:
        affected = LocalStream(cast, "ann", ["t"])
        other = LocalStream(cast, "bob", ["other"])
        for stream in (affected, other):
            await stream.ready()
        # Nobody deletes anything: whoever is held stays so.
        assert cast.hub.cache is not None
        monkeypatch.setattr(cast.hub.cache, "_ready", lambda: ([], None))
        await cast.publish("t", 1)
        await other.settled()
        await affected.settled()
        assert affected.events() == []
        assert cast.hub.states()["live"] == 2
        monkeypatch.undo()
        cast.hub.cache._work.set()
        await affected.until(lambda: len(affected.events()) == 1)


async def test_a_client_that_comes_back_and_one_that_is_told_to_refetch(valkey: ValkeyServer) -> None:
    async with running(valkey) as cast:
        first = LocalStream(cast, "ann", ["t"])
        await first.ready()
        position = first.position
        first.close()
        await cast.publish("t", 1)
        fill(valkey, "ann")
        again = Watched(cast, "ann", valkey, last_event_id=position)
        await again.until(lambda: len(again.events()) == 1)
        assert again.cached == [False]
        fill(valkey, "ann")
        lost = LocalStream(cast, "ann", ["t"], last_event_id="ffff:1-0")
        await lost.until(lambda: bool(lost.events("rowcast.reset")))
        with contextlib.closing(valkey.client()) as client:
            assert not client.exists("cache:dashboard:ann")


async def test_an_ended_stream_still_gets_its_bye(valkey: ValkeyServer) -> None:
    async with running(valkey) as cast:
        stream = LocalStream(cast, "ann", ["t"])
        await stream.ready()
        assert cast.hub.cache is not None
        valkey.pause()
        await cast.publish("t", 1)
        await cast.disconnect("ann")
        await stream.until(lambda: bool(stream.events("rowcast.bye")))
        assert len(stream.events()) == 1
        valkey.resume()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"invalidate": ["cache:{user}"]}, r"\[cache\] url"),
        ({"invalidate": ["cache:all"], "url": "redis://x"}, "user"),
        ({"invalidate": ["cache:{name}"], "url": "redis://x"}, "user"),
        ({"invalidate": ["cache:{user"], "url": "redis://x"}, "without"),
        ({"invalidate": [], "url": "http://x"}, "url"),
    ],
)
def test_what_is_wrong_is_said(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Rowcast(log="memory:", cache=section, auth=SECRET)
