"""The demo's front server and proxy, on real sockets, with small stand-ins for the replicas."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import uvicorn

from rowcast.demo import market
from rowcast.demo.front import Database, Front
from rowcast.demo.proxy import MAX_BODY, Proxy
from rowcast.demo.replay import Replay
from rowcast.demo.supervisor import Replica, Supervisor

SECRET = "a secret that is long enough for HS256, with some to spare"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-rowcast-replica: %s\r\n\r\n"


class Upstream:
    """A replica of a few lines: streams stay open until `cut`, other requests get their own text back."""

    def __init__(self, name: str) -> None:
        self.replica = Replica(name, Path("unused"))
        self.requests: list[str] = []
        self.open: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.replica.port = self._server.sockets[0].getsockname()[1]
        self.replica.state = "up"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(head.decode())
        name = self.replica.name.encode()
        if head.startswith(b"GET /events"):
            self.open.append(writer)
            writer.write(HEAD % name + b"event: rowcast.ready\ndata: %s\n\n" % name)
            await reader.read()  # until the other side goes
            self.open.remove(writer)
        else:
            writer.write(b"HTTP/1.1 207 Multi\r\ncontent-length: 1\r\nconnection: close\r\n\r\n%s" % name)
        writer.close()

    def cut(self) -> None:
        for writer in self.open:
            writer.transport.abort()

    async def stop(self) -> None:
        self.cut()
        assert self._server is not None
        self._server.close()


class Demo:
    """A front server on a free port before two stand-in replicas."""

    def __init__(self, http: httpx.AsyncClient, proxy: Proxy, replay: Replay, upstreams: list[Upstream]) -> None:
        self.http = http
        self.proxy = proxy
        self.replay = replay
        self.upstreams = upstreams

    @contextlib.asynccontextmanager
    async def stream(self, client: str, **headers: str) -> AsyncIterator[AsyncIterator[str]]:
        path = f"/events?token=T&client={client}&topics=a"
        async with self.http.stream("GET", path, headers=headers) as answer:
            assert answer.status_code == 200
            yield answer.aiter_lines()


@pytest.fixture
async def demo(tmp_path: Path) -> AsyncIterator[Demo]:
    upstreams = [Upstream("A"), Upstream("B")]
    for upstream in upstreams:
        await upstream.start()
    supervisor = Supervisor([], lambda name: [], lambda name: {}, logs=tmp_path)
    supervisor.replicas = [upstream.replica for upstream in upstreams]
    proxy = Proxy(supervisor)
    replay = Replay("unused", market.load())
    database = Database("18.1", "postgresql://postgres@127.0.0.1:1/market", tmp_path / "with space" / "psql")
    front = Front(supervisor, proxy, replay, market.load(), database, SECRET)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(front.asgi(), lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve([listener]))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with httpx.AsyncClient(base_url=url, timeout=5, trust_env=False) as http:
        yield Demo(http, proxy, replay, upstreams)
        proxy.end_streams()
        server.should_exit = True
        await serving
    await proxy.close()
    for upstream in upstreams:
        await upstream.stop()


async def first(lines: AsyncIterator[str], prefix: str = "data: ") -> str:
    async for line in lines:
        if line.startswith(prefix):
            return line.removeprefix(prefix)
    raise AssertionError("the stream ended")


async def test_streams_spread_over_the_replicas(demo: Demo) -> None:
    async with demo.stream("one") as one, demo.stream("two") as two:
        assert {await first(one), await first(two)} == {"A", "B"}
        assert [demo.proxy.streams(upstream.replica) for upstream in demo.upstreams] == [1, 1]


async def test_a_stream_carries_the_query_and_the_last_event_id_but_not_the_client(demo: Demo) -> None:
    async with demo.stream("me", **{"last-event-id": "7f3a:1-0"}) as lines:
        name = await first(lines)
    upstream = next(each for each in demo.upstreams if each.replica.name == name)
    assert upstream.requests[0].startswith("GET /events?token=T&topics=a HTTP/1.1")
    assert "last-event-id: 7f3a:1-0" in upstream.requests[0]


async def test_a_stream_ends_when_its_replica_dies(demo: Demo) -> None:
    async with demo.stream("me") as lines:
        name = await first(lines)
        next(each for each in demo.upstreams if each.replica.name == name).cut()
        assert [line async for line in lines if line] == []


async def test_a_page_that_goes_away_lets_go_of_the_replica(demo: Demo) -> None:
    async with demo.stream("me") as lines:
        await first(lines)
    async with asyncio.timeout(30):
        while demo.proxy.holder("me") is not None or any(upstream.open for upstream in demo.upstreams):
            await asyncio.sleep(0.005)


async def test_a_stream_goes_on_to_the_next_replica_when_one_refuses(demo: Demo) -> None:
    await demo.upstreams[0].stop()
    for _ in range(2):
        async with demo.stream("me") as lines:
            assert await first(lines) == "B"


async def test_with_no_replica_a_stream_is_told_to_come_again(demo: Demo) -> None:
    for upstream in demo.upstreams:
        upstream.replica.state = "down"
    async with demo.stream("me") as lines:
        told = [line async for line in lines]
    assert told[0] == "retry: 500"
    assert "event: rowcast.bye" in told
    answer = await demo.http.get("/users/me/channels")
    assert answer.status_code == 503
    assert answer.json() == {
        "status": 503,
        "error": "no replica is up; one is started again in a few seconds",
    }


async def test_writes_go_to_the_replica_that_does_not_hold_the_stream(demo: Demo) -> None:
    async with demo.stream("me") as lines:
        holder = await first(lines)
        for _ in range(4):
            answer = await demo.http.put("/users/me/channels/finance", headers={"x-demo-client": "me"}, json={})
            assert (answer.status_code, answer.text) == (207, answer.headers["x-demo-replica"])
            assert answer.text != holder


async def test_with_one_replica_writes_go_to_the_holder(demo: Demo) -> None:
    demo.upstreams[0].replica.state = "down"
    async with demo.stream("me") as lines:
        await first(lines)
        answer = await demo.http.put("/users/me/channels/x", headers={"x-demo-client": "me"}, json={})
        assert answer.text == "B"


async def test_a_large_write_is_refused(demo: Demo) -> None:
    answer = await demo.http.put("/users/me/channels/x", content=b"x" * (MAX_BODY + 1))
    assert answer.status_code == 413


async def test_sign_in_mints_a_token(demo: Demo) -> None:
    answer = await demo.http.post("/demo/sign-in", json={"user": "maya"})
    assert jwt.decode(answer.json()["token"], SECRET, algorithms=["HS256"])["sub"] == "maya"


@pytest.mark.parametrize("body", [{"user": "nobody"}, {}, {"user": ["maya"]}])
async def test_others_can_not_sign_in(demo: Demo, body: dict[str, Any]) -> None:
    answer = await demo.http.post("/demo/sign-in", json=body)
    assert answer.status_code == 404
    assert "maya" in answer.json()["error"]


async def test_another_site_can_do_nothing(demo: Demo) -> None:
    simple = await demo.http.post("/demo/replay", content='{"paused": true}', headers={"content-type": "text/plain"})
    assert simple.json() == {"paused": False}
    for path in ("/", "/events?token=T", "/demo/state"):
        assert (await demo.http.get(path, headers={"host": "evil.example"})).status_code == 400


async def test_kill_needs_a_stream(demo: Demo) -> None:
    answer = await demo.http.post("/demo/kill", json={"client": "me"})
    assert answer.status_code == 409
    assert answer.json()["error"] == "no replica holds a stream of this page right now"


async def test_the_replay_can_be_held(demo: Demo) -> None:
    assert (await demo.http.post("/demo/replay", json={"paused": True})).json() == {"paused": True}
    assert (await demo.http.get("/demo/state")).json()["replay"]["paused"] is True
    await demo.http.post("/demo/replay", json={"paused": False})
    assert not demo.replay.paused


async def test_the_state_names_each_replica(demo: Demo) -> None:
    demo.upstreams[1].replica.state = "down"
    replicas = (await demo.http.get("/demo/state")).json()["replicas"]
    assert [(each["name"], each["state"], each["streams"]) for each in replicas] == [
        ("A", "up", 0),
        ("B", "down", 0),
    ]


async def test_the_psql_command_is_quoted(demo: Demo) -> None:
    facts = (await demo.http.get("/demo/about")).json()
    assert "/with space/psql' postgresql://postgres@127.0.0.1:1/market -c \"UPDATE quotes" in facts["psql"]
    assert [each["symbol"] for each in facts["symbols"]] == ["MSFT", "AMZN", "IBM", "GOOG", "AAPL", "VIX"]


async def test_the_page_needs_nothing_from_elsewhere_and_is_light(demo: Demo) -> None:
    page = await demo.http.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    static = Path(market.__file__).parent / "static"
    weight = 0
    for file in static.iterdir():
        answer = await demo.http.get(f"/static/{file.name}")
        assert answer.status_code == 200
        assert "http://" not in answer.text.replace("http://www.w3.org/", "")
        assert "https://" not in answer.text
        weight += len(answer.content)
    assert weight < 150_000
