"""HTTP/2 without a proxy: many streams on one connection, each with memory of its own, and an end in order."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import httpx
import pytest
from playwright.sync_api import sync_playwright

from rowcast import Rowcast
from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.http import http2
from rowcast.http.takeover import Protocol as Http1Protocol
from rowcast.testing.certificates import Authority
from rowcast.testing.server import RowcastServer
from rowcast.testing.serving import serving
from rowcast.testing.stream import OpenStream

SECRET = "0123456789abcdef0123456789abcdef"
KEY = {"authorization": "Bearer k"}
CONFIG = f"""
[server]
http2 = true
max_streams_per_user = 60
[auth]
secret = "{SECRET}"
query_token = true
[api]
key = "k"
"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def token(*topics: str) -> str:
    return mint(Config.from_sections({"auth": SECRET}), "ann", topics=list(topics))


class Service:
    def __init__(self, server: RowcastServer, authority: Authority) -> None:
        self.server = server
        self.authority = authority


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    authority = Authority(tmp_path_factory.mktemp("tls"))
    cert, key = authority.issue("server")
    arguments = ("--no-access-log", "--tls-cert", str(cert), "--tls-key", str(key))
    with RowcastServer(CONFIG, arguments=arguments) as server:
        yield Service(server, authority)


async def test_fifty_streams_on_one_connection(service: Service) -> None:
    client = httpx.AsyncClient(
        http2=True, base_url=service.server.url, verify=service.authority.trust(), timeout=httpx.Timeout(30, read=None)
    )
    async with client, contextlib.AsyncExitStack() as stack:
        addresses: set[Any] = set()
        bodies: list[AsyncIterator[str]] = []
        for number in range(50):
            headers = {"authorization": f"Bearer {token(f't{number}', 'all')}"}
            response = await stack.enter_async_context(client.stream("GET", "/events", headers=headers))
            assert (response.status_code, response.http_version) == (200, "HTTP/2")
            addresses.add(response.extensions["network_stream"].get_extra_info("client_addr"))
            bodies.append(response.aiter_lines())
        assert len(addresses) == 1
        for topic in ("t7", "all"):
            sent = {"topic": topic, "data": topic}
            assert (await client.post("/publish", headers=KEY, json=sent)).status_code == 202
        got: Counter[str] = Counter()
        for number, body in enumerate(bodies):
            async with asyncio.timeout(60):
                async for line in body:
                    if line.startswith("data:") and '"data":' in line:
                        got[f"{number} {line}"] += 1
                        if '"topic":"all"' in line:
                            break
        assert set(got.values()) == {1}
        assert len([line for line in got if '"topic":"all"' in line]) == 50
        assert [line.split()[0] for line in got if '"topic":"t7"' in line] == ["7"]


async def test_http_1_is_spoken_beside_it(service: Service) -> None:
    async with OpenStream(service.server.url, token("t"), tls=service.authority.trust()) as stream:
        await stream.ready()
        assert stream.head["connection"] == "close"  # taken over, as ever


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_fifty_event_sources_of_one_browser(service: Service) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--ignore-certificate-errors"]
        )
        with contextlib.closing(browser):
            page = browser.new_context(ignore_https_errors=True).new_page()
            page.goto(f"{service.server.url}/healthz")
            page.evaluate(
                """([token, count]) => {
                    window.got = Array(count).fill(null);
                    window.sources = window.got.map((_, number) => {
                        const source = new EventSource(`/events?token=${token}`);
                        source.onmessage = (event) => { window.got[number] = JSON.parse(event.data).data; };
                        return source;
                    });
                }""",
                [token("browser"), 50],
            )
            # By HTTP/1.1 a browser would open six, and the others would wait.
            page.wait_for_function("sources.every((source) => source.readyState === EventSource.OPEN)", timeout=60_000)
            protocols = page.evaluate(
                "performance.getEntriesByType('navigation').map((entry) => entry.nextHopProtocol)"
            )
            assert protocols == ["h2"]
            with httpx.Client(verify=service.authority.trust()) as client:
                sent = {"topic": "browser", "data": 42}
                answer = client.post(f"{service.server.url}/publish", headers=KEY, json=sent)
                assert answer.status_code == 202
            page.wait_for_function("got.every((value) => value === 42)", timeout=60_000)


# In this process, by a client that can be told to misbehave


class Raw:
    """A client of HTTP/2 that gives no room for data until it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.data: dict[int, bytes] = {}
        self.status: dict[int, str] = {}
        self.gone: h2.events.ConnectionTerminated | None = None
        self.closed = self.sent_away = False
        self.generous = False
        self._owed: Counter[int] = Counter()
        self._changed = asyncio.Event()
        self._flush()
        self._task = asyncio.create_task(self._read())

    def get(self, path: str, bearer: str) -> int:
        number = self.h2.get_next_available_stream_id()
        headers = [(":method", "GET"), (":path", path), (":scheme", "http"), (":authority", "x")]
        self.h2.send_headers(number, [*headers, ("authorization", f"Bearer {bearer}")], end_stream=True)
        self.data[number] = b""
        self._flush()
        return number

    def be_generous(self) -> None:
        self.generous = True
        for number, size in self._owed.items():
            self.h2.acknowledge_received_data(size, number)
        self._owed.clear()
        self._flush()

    async def until(self, holds: Any) -> None:
        async with asyncio.timeout(60):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def close(self) -> None:
        self._task.cancel()
        self.writer.close()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def _flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def _read(self) -> None:
        try:
            while received := await self.reader.read(65536):
                if self.gone is not None:
                    continue  # this client knows of nothing after GOAWAY
                for event in self.h2.receive_data(received):
                    if isinstance(event, h2.events.DataReceived):
                        self.data[event.stream_id] += event.data
                        if self.generous:
                            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                        else:
                            self._owed[event.stream_id] += event.flow_controlled_length
                    elif isinstance(event, h2.events.ResponseReceived):
                        self.status[event.stream_id] = dict(event.headers)[":status"]  # type: ignore[index]
                    elif isinstance(event, h2.events.ConnectionTerminated):
                        self.gone = event
                self._flush()
                self._changed.set()
        except h2.exceptions.ProtocolError:
            # It lets go of everything that came together with a GOAWAY, if there is more behind it.
            assert self.h2.state_machine.state is h2.connection.ConnectionState.CLOSED
            self.sent_away = True
        finally:
            self.closed = True
            self._changed.set()


def rowcast(**sections: Any) -> Rowcast:
    return Rowcast(auth=SECRET, api="k", **sections)


@contextlib.asynccontextmanager
async def raw(cast: Rowcast) -> AsyncIterator[tuple[Raw, httpx.AsyncClient]]:
    async with serving(cast.asgi(), http=http2.Protocol) as client:
        made = Raw(*await asyncio.open_connection(client.base_url.host, client.base_url.port))
        try:
            yield made, client
        finally:
            await made.close()


async def until(holds: Any) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


async def test_who_does_not_read_falls_behind_and_catches_up() -> None:
    cast = rowcast()
    async with raw(cast) as (client, _):
        lazy, quick = (
            client.get("/events?topics=lazy", token("lazy")),
            client.get("/events?topics=quick", token("quick")),
        )
        await client.until(lambda: b"rowcast.ready" in client.data[lazy] and b"rowcast.ready" in client.data[quick])
        kept = []
        for number in range(40):
            await cast.publish("lazy", {"n": number, "text": "x" * 20_000})
            kept.append(_parked())
        # The windows of HTTP/2 are 64 kB: what did not fit was not kept for this stream, but left in the ring.
        await until(lambda: cast.hub.states()["behind"] == 1)
        assert max(kept) < 300_000
        assert cast.hub.states()["live"] == 1
        client.be_generous()
        await client.until(lambda: b'"n":39' in client.data[lazy])
        for number in range(40):
            assert client.data[lazy].count(b'"n":%d,' % number) == 1
        await cast.publish("quick", 1)
        await client.until(lambda: b'"data":1' in client.data[quick])


def _parked() -> int:
    """Bytes that are kept for clients without room."""
    import gc

    protocols = [one for one in gc.get_objects() if type(one) is http2.Multiplexed]
    return sum(cycle.stream.pending_bytes or 0 for one in protocols for cycle in one.cycles.values())


async def test_a_client_that_cancels_a_stream_keeps_the_others() -> None:
    cast = rowcast()
    async with raw(cast) as (client, _):
        one, other = client.get("/events", token("t")), client.get("/events", token("t"))
        await client.until(lambda: b"rowcast.ready" in client.data[one] and b"rowcast.ready" in client.data[other])
        assert cast.hub.streams_count == 2
        client.h2.reset_stream(one)
        client._flush()
        await until(lambda: cast.hub.streams_count == 1)
        await cast.publish("t", 7)
        await client.until(lambda: b'"data":7' in client.data[other])
        assert b'"data":7' not in client.data[one]


async def test_while_it_drains_requests_are_answered_and_the_client_is_sent_elsewhere() -> None:
    cast = rowcast(server={"drain_delay": 0})
    async with raw(cast) as (client, _):
        stream = client.get("/events", token("t"))
        await client.until(lambda: b"rowcast.ready" in client.data[stream])
        cast.drain()
        await client.until(lambda: b'{"reason":"draining"}' in client.data[stream])
        again = client.get("/events", token("t"))
        await client.until(lambda: b'{"reason":"draining"}' in client.data[again] and client.gone is not None)
        assert client.status[again] == "200"
        assert b"retry: " in client.data[again]
        # Whatever was asked before GOAWAY is answered, so none may be sent again.
        assert client.gone is not None
        assert client.gone.last_stream_id == http2.LAST_STREAM


async def test_a_server_that_ends_says_so_on_every_connection() -> None:
    with RowcastServer(CONFIG) as server:
        target = urlsplit(server.url)
        client = Raw(*await asyncio.open_connection(target.hostname, target.port))
        stream = client.get("/events", token("t"))
        await client.until(lambda: b"rowcast.ready" in client.data[stream])
        assert await asyncio.to_thread(server.stop) == 0
        await client.until(lambda: client.gone is not None or client.sent_away)
        await client.close()


async def test_a_connection_that_asks_for_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2, "HEAD_TIME", 0.1)
    async with raw(rowcast()) as (client, _):
        await client.until(lambda: client.closed)
    async with serving(rowcast().asgi(), http=http2.Protocol) as other:
        reader, writer = await asyncio.open_connection(other.base_url.host, other.base_url.port)
        async with asyncio.timeout(60):
            assert await reader.read() == b""
        writer.close()


async def test_http_1_without_tls_has_its_own_protocol() -> None:
    async with serving(rowcast().asgi(), http=http2.Protocol) as client:
        assert (await client.get("/healthz")).http_version == "HTTP/1.1"
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 40_000 + b"\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 431")
        writer.close()
    assert issubclass(Http1Protocol, asyncio.Protocol)
