"""Streams over real sockets: starts, ends, limits, heartbeats, positions, and clients that do not read."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.testing.postgres import PostgresServer
from rowcast.testing.server import RowcastServer
from rowcast.testing.stream import OpenStream

SECRET = "0123456789abcdef0123456789abcdef"
CONFIG = """
[server]
heartbeat = "200ms"
max_streams_per_user = 2

[postgres]
url = "{url}"

[log]
ring_bytes = "8MB"

[auth]
secret = "{secret}"
query_token = true

[api]
key = "key"

[[route]]
table = "items"
topic = "items:{{kind}}"
deletes = false

[[subscription]]
table = "rowcast_channels"
user = "{{user_id}}"
when = "{{enabled}}"
topics = ["items:{{config.kinds[*]}}"]
"""


def token(user: str = "ann", topics: list[str] | None = None, ttl: float = 600) -> str:
    return mint(Config.from_sections({"auth": SECRET}), user, topics=topics, ttl=ttl)


@pytest.fixture(scope="module")
def own() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY, kind text NOT NULL, text text)")
        yield server


NO_TAKEOVER = """
from rowcast.http import takeover
takeover.LACK = "this uvicorn is another one"
"""
"""What a replica runs first that must serve its streams through plain ASGI."""


@pytest.fixture(scope="module", params=["taken", "plain"])
def served(
    request: pytest.FixtureRequest, own: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RowcastServer]:
    environment = {}
    if request.param == "plain":
        directory = tmp_path_factory.mktemp("plain")
        (directory / "sitecustomize.py").write_text(NO_TAKEOVER)
        environment["PYTHONPATH"] = str(directory)
    with RowcastServer(CONFIG.format(url=own.url(), secret=SECRET), environment=environment) as server:
        yield server
        assert ("streams are not taken over" in server.log) == (request.param == "plain")


@pytest.fixture
def sql(own: PostgresServer) -> Iterator[Any]:
    with psycopg.connect(own.url(), autocommit=True) as connection:
        yield connection.execute


async def test_the_head_and_the_first_block_come_at_once(served: RowcastServer) -> None:
    async with OpenStream(served.url, token()) as stream:
        await stream.ready()
        assert stream.head["content-type"] == "text/event-stream; charset=utf-8"
        assert stream.head["cache-control"] == "no-store, no-transform"
        assert stream.head["x-accel-buffering"] == "no"
        assert stream.blocks[0].retry == 3000
        assert stream.blocks[1].event == "rowcast.ready"
        assert stream.blocks[1].id == stream.blocks[1].data["position"]


async def test_a_quiet_stream_has_heartbeats_that_move_its_position_on(served: RowcastServer, sql: Any) -> None:
    async with OpenStream(served.url, token(topics=["items:quiet"])) as stream:
        await stream.ready()
        started = stream.position
        sql("INSERT INTO items (kind) VALUES ('other')")
        await stream.until(lambda: stream.position != started)
        moved = stream.position
        async with OpenStream(served.url, token(topics=["items:quiet"]), last_event_id=moved) as again:
            await again.ready()
            assert not again.events("rowcast.reset")


async def test_the_users_oldest_stream_is_ended_for_the_newest(served: RowcastServer) -> None:
    async with OpenStream(served.url, token("max")) as first, OpenStream(served.url, token("max")) as second:
        await first.ready()
        await second.ready()
        async with OpenStream(served.url, token("max")) as third, OpenStream(served.url, token("other")) as other:
            await other.ready()
            await third.ready()
            bye = await first.expect(lambda block: block.event == "rowcast.bye")
            assert bye.data == {"reason": "busy"}
            await first.until(lambda: first.ended)
            assert not second.ended
            assert not third.ended


async def test_a_stream_ends_when_its_token_expires(served: RowcastServer) -> None:
    async with OpenStream(served.url, token(ttl=1.5)) as stream:
        await stream.ready()
        bye = await stream.expect(lambda block: block.event == "rowcast.bye")
        assert bye.data == {"reason": "token_expired"}
        await stream.until(lambda: stream.ended)


async def test_disconnect_ends_the_streams_and_refuses_older_tokens(served: RowcastServer) -> None:
    old = token("eve")
    async with OpenStream(served.url, old) as stream, httpx.AsyncClient(base_url=served.url) as client:
        await stream.ready()
        answer = await client.post("/control/disconnect", json={"user": "eve"}, headers={"authorization": "Bearer key"})
        assert answer.status_code == 202
        bye = await stream.expect(lambda block: block.event == "rowcast.bye")
        assert bye.data == {"reason": "disconnected"}
        refused = await client.get("/events", headers={"authorization": f"Bearer {old}"})
        assert refused.status_code == 401
    async with OpenStream(served.url, token("eve")) as stream:
        await stream.ready()


@pytest.mark.parametrize("how", ["header", "query"])
async def test_positions(served: RowcastServer, sql: Any, how: str) -> None:
    def opened(position: str) -> OpenStream:
        if how == "header":
            return OpenStream(served.url, token(topics=["items:p"]), last_event_id=position)
        return OpenStream(served.url, token(topics=["items:p"]), params={"last_event_id": position})

    async with OpenStream(served.url, token(topics=["items:p"])) as stream:
        await stream.ready()
        sql("INSERT INTO items (kind, text) VALUES ('p', '1'), ('p', '2')")
        await stream.until(lambda: len(stream.events()) == 2)
        first = next(block.id for block in stream.blocks if block.event == "message" and block.data)
    async with opened(first) as resumed:
        await resumed.until(lambda: len(resumed.events()) == 1)
        assert resumed.blocks[1].id == first, "ready tells the position from which it goes on"
        assert resumed.events()[0]["record"]["text"] == "2"
    epoch, _, place = first.partition(":")
    for position, reason in (
        (f"{'0' * len(epoch)}:{place}", "other_epoch"),
        (f"{epoch}:1-0", "position_expired"),
        (f"{epoch}:7FFFFFFFFFFFFFFF-0", "position_unknown"),
    ):
        async with opened(position) as stream:
            reset = await stream.expect(lambda block: block.event == "rowcast.reset")
            assert reset.data["reason"] == reason
            sql("INSERT INTO items (kind, text) VALUES ('p', 'after')")
            await stream.until(lambda: bool(stream.events()))


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/events", {}, 401),
        ("/events", {"authorization": "Bearer x.y.z"}, 401),
        ("/events", {"authorization": "Basic abc"}, 401),
        ("/events?token=x", {}, 401),
        ("/events?topics=", {"user": "ann"}, 400),
        ("/events?last_event_id=nonsense", {"user": "ann"}, 400),
        ("/events", {"user": "ann", "last-event-id": "1"}, 400),
    ],
)
async def test_what_is_wrong_for_good_has_its_status(
    served: RowcastServer, path: str, headers: dict[str, str], status: int
) -> None:
    if user := headers.pop("user", None):
        headers["authorization"] = f"Bearer {token(user)}"
    async with httpx.AsyncClient(base_url=served.url) as client:
        answer = await client.get(path, headers=headers)
    assert answer.status_code == status
    assert answer.json()["status"] == status
    assert answer.json()["error"]


async def test_a_token_in_the_query_is_accepted_and_not_logged(served: RowcastServer) -> None:
    secret = token("quinn")
    async with OpenStream(served.url, "unused", params={"token": secret}) as stream:
        stream._headers.clear()
        assert (await stream.ready())["user"] == "quinn"
    assert secret not in served.log


async def test_narrowing(served: RowcastServer, sql: Any) -> None:
    topics = ["items:a", "items:b"]
    async with OpenStream(served.url, token(topics=topics), params={"topics": "items:b, items:zz"}) as stream:
        assert (await stream.ready())["topics"] == ["items:b"]
        sql("INSERT INTO items (kind, text) VALUES ('a', 'a'), ('b', 'b'), ('zz', 'zz')")
        await stream.until(lambda: bool(stream.events()))
        assert [event["topic"] for event in stream.events()] == ["items:b"]


async def test_a_client_that_does_not_read_costs_bounded_memory_and_catches_up_or_is_reset(
    served: RowcastServer, sql: Any
) -> None:
    where = urlsplit(served.url)
    with socket.create_connection((where.hostname, where.port)) as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = f"GET /events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token('lazy', ['items:big'])}\r\n\r\n"
        lazy.sendall(request.encode())
        async with OpenStream(served.url, token(topics=["items:big"])) as reader:
            await reader.ready()
            for part in range(40):
                if part == 20:  # the ring is full
                    before = served.rss
                # In parts that a client that reads keeps up with: only the other one falls behind.
                sql("INSERT INTO items (kind, text) SELECT 'big', repeat('x', 2000) FROM generate_series(1, 500)")
                count = 500 * (part + 1)
                await reader.until(lambda: len(reader.events()) == count)  # noqa: B023
            assert not reader.events("rowcast.reset")
        assert served.rss - before < 12e6
        lazy.setblocking(False)
        loop = asyncio.get_running_loop()
        got = b""
        async with asyncio.timeout(60):
            while got.count(b'"action":"insert"') < 20_000 and b"rowcast.reset" not in got:
                got += await loop.sock_recv(lazy, 1 << 20)
        sql("INSERT INTO items (kind, text) VALUES ('big', 'the last')")
        async with asyncio.timeout(60):
            while b'"text":"the last"' not in got:
                got += await loop.sock_recv(lazy, 1 << 20)


async def test_not_now_is_a_200_with_bye_unless_a_status_is_asked_for(sql: Any) -> None:
    with PostgresServer() as postgres:
        with psycopg.connect(postgres.url(), autocommit=True) as connection:
            connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY, kind text NOT NULL, text text)")
        with RowcastServer(CONFIG.format(url=postgres.url(), secret=SECRET)) as server:
            async with (
                OpenStream(server.url, token("held")) as held,
                httpx.AsyncClient(base_url=server.url, timeout=30) as client,
            ):
                await held.ready()
                await asyncio.to_thread(postgres.stop, signal.SIGINT)
                async with OpenStream(server.url, token("new")) as stream:
                    bye = await stream.expect(lambda block: block.event == "rowcast.bye")
                    assert bye.data == {"reason": "unavailable"}
                    await stream.until(lambda: stream.ended)
                    assert stream.blocks[-2].retry or stream.blocks[-1].retry
                async with asyncio.timeout(30):
                    while (answer := await client.get("/readyz")).status_code == 200:
                        pass
                assert answer.json()["checks"]["log"]["ok"] is False
                assert (await client.get("/healthz")).status_code == 200
                published = await client.post(
                    "/publish", json={"topic": "t", "data": 1}, headers={"authorization": "Bearer key"}
                )
                assert published.status_code == 503
                assert published.headers["retry-after"]
                assert not held.ended
                await asyncio.to_thread(postgres.start)
                async with asyncio.timeout(30):
                    while (await client.get("/readyz")).status_code != 200:
                        pass
                assert not held.ended
                async with OpenStream(server.url, token("new")) as stream:
                    await stream.ready()
