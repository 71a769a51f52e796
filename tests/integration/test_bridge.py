"""The bridge: what is PUBLISHed in a real Valkey or Redis, on the streams of every replica."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rowcast import Rowcast
from rowcast.errors import ConfigError, SetupError
from rowcast.sources import pubsub
from rowcast.testing.local import LocalStream
from rowcast.testing.serving import serving
from rowcast.testing.valkey import ValkeyServer

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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead connection is noticed in half a second."""
    monkeypatch.setattr(pubsub, "QUIET", 0.1)
    monkeypatch.setattr(pubsub, "SILENCE", 0.4)


def make(valkey: ValkeyServer, **sections: Any) -> Rowcast:
    return Rowcast(log={"url": valkey.url, "pubsub_bridge": True}, auth=SECRET, api="k", **sections)


@contextlib.asynccontextmanager
async def running(valkey: ValkeyServer, **sections: Any) -> AsyncIterator[Rowcast]:
    cast = make(valkey, **sections)
    async with cast.lifespan():
        yield cast


def publish(valkey: ValkeyServer, channel: str | bytes, data: str | bytes) -> int:
    with contextlib.closing(valkey.client()) as client:
        return int(client.publish(channel, data))  # type: ignore[arg-type]


async def listening(cast: Rowcast) -> None:
    assert cast.replica.bridge is not None
    async with asyncio.timeout(20):
        while not cast.replica.bridge.state().ok:
            await asyncio.sleep(0.02)


async def test_it_is_delivered_on_every_replica_without_an_id(server: ValkeyServer) -> None:
    async with running(server) as first, running(server) as second:
        streams = [LocalStream(cast, "ann", ["finance:AAPL"]) for cast in (first, second)]
        others = [LocalStream(cast, "bob") for cast in (first, second)]
        for stream in (*streams, *others):
            await stream.ready()
        assert publish(server, "cdc:finance:AAPL", '{"price": 224.310, "n": 12345678901234567890}') == 2
        assert publish(server, "cdc:core:user:bob", '"for bob"') == 2
        for stream in streams:
            await stream.until(lambda stream=stream: len(stream.events()) == 1)  # type: ignore[misc]
            assert stream.events() == [{"topic": "finance:AAPL", "data": {"price": 224.31, "n": 12345678901234567890}}]
            assert stream.blocks[-1].id == ""
        for stream in others:
            await stream.until(lambda stream=stream: len(stream.events()) == 1)  # type: ignore[misc]
            assert stream.events() == [{"topic": "user:bob", "data": "for bob"}]
        # It is in no log: whoever comes later has missed it, and positions know nothing of it.
        position = streams[0].blocks[0].id
        late = LocalStream(first, "ann", ["finance:AAPL"], last_event_id=position)
        await late.ready()
        await late.settled()
        assert late.events() == []


@pytest.mark.parametrize(
    ("published", "data"),
    [(b'{"a":  1.50}', b'data: {"a":  1.50}\n\n'), (b'{"a":\n1.50}', b'data: {"a":1.50}\n\n')],
)
async def test_in_the_sequin_envelope_the_data_are_what_was_published(
    valkey: ValkeyServer, published: bytes, data: bytes
) -> None:
    blocks = []
    async with running(valkey, server={"envelope": "sequin"}) as cast:
        assert cast.replica.bridge is not None
        cast.replica.bridge._deliver = lambda topic, block: blocks.append((topic, block))
        publish(valkey, "cdc:t", published)
        async with asyncio.timeout(20):
            while not blocks:
                await asyncio.sleep(0.01)
    assert blocks == [("t", data)]


async def test_bad_messages_are_refused_and_counted_and_the_next_one_arrives(valkey: ValkeyServer) -> None:
    async with serving((cast := make(valkey, server={"max_event": 1000})).asgi()) as client:
        stream = LocalStream(cast, "ann", ["t"])
        await stream.ready()
        bad: list[tuple[str | bytes, str | bytes]] = [
            ("cdc:t", "no JSON"),
            ("cdc:t", ""),
            ("cdc:t", b'"\xff"'),
            ("cdc:t", "[" * 100_000),
            ("cdc:t", "[" * 900),
            ("cdc:t", '"' + "x" * 1000 + '"'),
            ("cdc:", "1"),
            ("cdc:a\nb", "1"),
            (b"cdc:\xff", "1"),
            ("cdc:" + "x" * 600, "1"),
            ("cdc:core:user:", "1"),
            ("sse:ctl:resubscribe", ""),
            ("sse:ctl:resubscribe", b"\xff"),
        ]
        for channel, data in bad:
            assert publish(valkey, channel, data) == 1
        publish(valkey, "cdc:t", "1")
        await stream.until(lambda: len(stream.events()) == 1)
        assert stream.events() == [{"topic": "t", "data": 1}]
        metrics = (await client.get("/metrics", headers={"authorization": "Bearer k"})).text
        assert f'rowcast_bridge_messages_total{{outcome="refused"}} {len(bad)}.0' in metrics
        assert 'rowcast_bridge_messages_total{outcome="delivered"} 1.0' in metrics


async def test_a_resubscribe_reads_the_users_rules_anew(valkey: ValkeyServer, database: str, quick: None) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE leagues (user_id text, topic text)")
        rule = {"sql": "SELECT topic FROM leagues WHERE user_id = %(user)s", "depends_on": {}}
        async with running(valkey, postgres=database, subscription=[rule]) as cast:
            stream, other = LocalStream(cast, "ann"), LocalStream(cast, "bob")
            for opened in (stream, other):
                await opened.ready()
            connection.execute("INSERT INTO leagues VALUES ('ann', 'one'), ('bob', 'two')")
            publish(valkey, "sse:ctl:resubscribe", "ann")
            await stream.until(lambda: bool(stream.events("rowcast.subscriptions")))
            assert stream.events("rowcast.subscriptions")[0]["topics"] == ["one"]
            assert other.events("rowcast.subscriptions") == []
            # While it does not listen, one for bob goes by; he is resubscribed when it listens again.
            valkey.pause()
            assert cast.replica.bridge is not None
            async with asyncio.timeout(20):
                while cast.replica.bridge.state().ok:
                    await asyncio.sleep(0.02)
            valkey.resume()
            await other.until(lambda: bool(other.events("rowcast.subscriptions")))
            assert other.events("rowcast.subscriptions")[0]["topics"] == ["two"]
            assert len(stream.events("rowcast.subscriptions")) == 1  # nothing differs, nothing is said


async def test_a_dead_connection_is_noticed_and_said(valkey: ValkeyServer, quick: None) -> None:
    async with serving((cast := make(valkey)).asgi()) as client:
        bridge = cast.replica.bridge
        assert bridge is not None
        stream = LocalStream(cast, "ann", ["t"])
        await stream.ready()
        valkey.pause()
        async with asyncio.timeout(20):
            while bridge.state().ok:
                await asyncio.sleep(0.02)
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert "does not arrive" in answer.json()["checks"]["bridge"]["detail"]
        valkey.resume()
        await listening(cast)
        publish(valkey, "cdc:t", "1")
        await stream.until(lambda: len(stream.events()) == 1)
        # Cut, and killed: the same.
        with contextlib.closing(valkey.client()) as killer:
            killer.client_kill_filter(_type="pubsub")
        async with asyncio.timeout(20):
            while bridge.reconnects < 2:
                await asyncio.sleep(0.02)
        valkey.kill()
        async with asyncio.timeout(20):
            while bridge.state().ok:
                await asyncio.sleep(0.02)
        valkey.start()
        await listening(cast)
        publish(valkey, "cdc:t", "2")
        await stream.until(lambda: len(stream.events()) == 2)
        assert (await client.get("/readyz")).json()["checks"]["bridge"]["ok"]


async def test_a_user_who_may_not_listen_is_told_at_the_start(
    valkey: ValkeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub, "OPEN_TIMEOUT", 0.5)
    with contextlib.closing(valkey.client()) as client:
        client.execute_command("ACL", "SETUSER", "deaf", "on", ">p", "~*", "+@all", "resetchannels")
    url = valkey.url.replace("redis://", "redis://deaf:p@")
    cast = Rowcast(log={"url": url, "pubsub_bridge": True}, auth=SECRET)
    with pytest.raises(SetupError, match=r"pubsub_bridge.*permission"):
        await cast.start()


async def test_a_client_that_does_not_read_misses_it_and_memory_is_bounded(valkey: ValkeyServer) -> None:
    async with running(valkey) as cast:
        from rowcast.core.grants import Grant
        from rowcast.core.stream import PENDING_LIMIT

        stream = cast.hub.connect(Grant("ann", frozenset({"t"})), lambda: None)
        block = b"data: " + b"x" * 10_000 + b"\n\n"
        for _ in range(100):
            cast.hub.deliver("t", block)
        assert stream.pending_bytes <= PENDING_LIMIT + len(block)
        assert cast.hub.missed > 0
        stream.take()
        cast.hub.deliver("t", block)
        assert stream.take() == block


@pytest.mark.parametrize("log", ["memory:", "postgres:"])
def test_it_needs_a_redis_log(log: str) -> None:
    with pytest.raises(ConfigError, match=r"pubsub_bridge.*redis://"):
        Rowcast(log={"url": log, "pubsub_bridge": True}, postgres="postgresql://x", auth=SECRET)
