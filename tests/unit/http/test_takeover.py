"""Streams whose transports are taken over, and those that must not be."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from rowcast import Rowcast
from rowcast.auth.jwt import mint
from rowcast.core.grants import Grant
from rowcast.core.held import Sink
from rowcast.core.stream import Stream
from rowcast.http import takeover
from rowcast.http.taken import TakenWriter
from rowcast.testing.certificates import Authority
from rowcast.testing.serving import serving

Make = Callable[..., Rowcast]


def request(cast: Rowcast, *topics: str, method: str = "GET", more: str = "") -> bytes:
    token = mint(cast.config, "ann", topics=list(topics))
    return f"{method} /events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{more}\r\n".encode()


class Client:
    """A connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.got = b""

    async def until(self, text: bytes) -> bytes:
        async with asyncio.timeout(20):
            while text not in self.got:
                data = await self._reader.read(65536)
                assert data, f"the end, after {self.got!r}"
                self.got += data
        return self.got

    async def end(self) -> bytes:
        async with asyncio.timeout(20):
            while data := await self._reader.read(65536):
                self.got += data
        return self.got


@contextlib.asynccontextmanager
async def connected(
    app: Any, sent: bytes, *, tls: ssl.SSLContext | None = None, **options: Any
) -> AsyncIterator[Client]:
    async with serving(app, **options) as client:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port, ssl=tls)
        try:
            writer.write(sent)
            yield Client(reader, writer)
        finally:
            writer.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0)


def taken() -> int:
    gc.collect()
    return sum(isinstance(one, TakenWriter) and one._transport is not None for one in gc.get_objects())


def test_this_uvicorn_can_be_taken_over_from() -> None:
    assert takeover.guard() is None
    assert tuple(map(int, uvicorn.__version__.split(".")[:2])) <= (0, 54), "look at what the takeover relies on anew"


@pytest.mark.parametrize("name", ["pipeline", "connections"])
def test_the_guard_names_what_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = HttpToolsProtocol.__init__.__code__
    made = code.replace(co_names=tuple("_other" if one == name else one for one in code.co_names))
    monkeypatch.setattr(HttpToolsProtocol.__init__, "__code__", made)
    assert f"HttpToolsProtocol.{name}" in (takeover.guard() or "")


async def test_of_the_request_nothing_stays(make: Make) -> None:
    cast = make()
    async with connected(cast.asgi(), request(cast, "t")) as client:
        head = (await client.until(b"rowcast.ready")).partition(b"\r\n\r\n")[0].lower()
        assert b"transfer-encoding" not in head
        assert b"connection: close" in head
        await until(lambda: not any(task.get_name().startswith("request") for task in asyncio.all_tasks()))
        await asyncio.sleep(0)
        gc.collect()
        kinds = (HttpToolsProtocol, RequestResponseCycle, FlowControl, takeover.Takeover)
        assert not [one for one in gc.get_objects() if isinstance(one, kinds)]
        await cast.publish("t", {"n": 1})
        await client.until(b'"n":1')
        client.writer.close()
        await until(lambda: cast.hub.streams_count == 0)
    assert taken() == 0


@pytest.mark.parametrize("takes", [True, False])
async def test_both_paths_say_the_same(make: Make, takes: bool) -> None:
    cast = make()
    async with connected(cast.asgi(), request(cast, "t"), takeover=takes) as client:
        await client.until(b"rowcast.ready")
        assert taken() == takes
        for number in range(50):
            await cast.publish("t", {"n": number})
        await client.until(b'"n":49}')
        assert [client.got.count(b'"n":%d}' % number) for number in range(50)] == [1] * 50
        await cast.disconnect("ann")
        await client.end()
        assert client.got.count(b'event: rowcast.bye\ndata: {"reason":"disconnected"}\n\n') == 1
    assert taken() == 0


@pytest.mark.parametrize("takes", [True, False])
async def test_a_stream_that_fails_closes_its_connection(
    make: Make, monkeypatch: pytest.MonkeyPatch, takes: bool
) -> None:
    cast = make()
    async with connected(cast.asgi(), request(cast, "t"), takeover=takes) as client:
        await client.until(b"rowcast.ready")
        assert taken() == takes

        def take(stream: Stream) -> bytes:
            raise OSError("a page of a snapshot can't be read")

        monkeypatch.setattr(Stream, "take", take)
        (stream,) = cast.hub.streams
        cast.hub.lag(stream)
        cast.hub.again(stream)
        # Left open it would be silent for ever: without a heartbeat, and without what its client waits for.
        with contextlib.suppress(ConnectionError):
            await client.end()
        await until(lambda: cast.hub.streams_count == 0)
        assert taken() == 0


class Broken:
    """A transport whose `write` raises, as one does whose handle was closed behind our back."""

    def __init__(self, transport: Sink) -> None:
        self.abort = transport.abort

    def write(self, data: bytes) -> None:
        raise RuntimeError("the handle is closed")


async def test_a_transport_that_raises_ends_its_stream_and_no_other(make: Make) -> None:
    cast = make()
    app = cast.asgi()
    async with connected(app, request(cast, "t")) as client, connected(app, request(cast, "t")) as other:
        await client.until(b"rowcast.ready")
        await other.until(b"rowcast.ready")
        stream = next(iter(cast.hub.streams))
        assert stream.sink is not None
        stream.sink = Broken(stream.sink)
        await cast.publish("t", {"n": 1})
        await other.until(b'"n":1')
        with contextlib.suppress(ConnectionError):
            await client.end()
        await until(lambda: cast.hub.streams_count == 1)
        assert b'"n":1' not in client.got


async def test_whoever_has_gone_is_not_written_to(make: Make) -> None:
    """A flush that is under way still has the stream on its list."""
    cast = make()
    async with connected(cast.asgi(), request(cast, "t")) as client:
        await client.until(b"rowcast.ready")
        (stream,) = cast.hub.streams
        assert stream.sink is not None
        client.writer.close()
        await until(lambda: cast.hub.streams_count == 0)
        assert stream.sink is None


async def test_a_second_request_on_the_connection_does_not_reach_into_the_stream(make: Make) -> None:
    cast = make()
    second = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    async with connected(cast.asgi(), request(cast, "t") + second) as client:
        await client.until(b"rowcast.ready")
        assert taken() == 0
        await cast.publish("t", {"n": 1})
        assert (await client.until(b'"n":1')).count(b"HTTP/1.1") == 1


async def test_what_comes_after_the_takeover_is_thrown_away(make: Make) -> None:
    cast = make()
    async with connected(cast.asgi(), request(cast, "t")) as client:
        await client.until(b"rowcast.ready")
        assert taken() == 1
        client.writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 20_000)
        await client.writer.drain()
        await cast.publish("t", {"n": 1})
        assert (await client.until(b'"n":1')).count(b"HTTP/1.1") == 1


async def test_a_body_keeps_the_plain_path(make: Make) -> None:
    cast = make()
    async with connected(cast.asgi(), request(cast, "t", more="Content-Length: 5\r\n")) as client:
        await client.until(b"rowcast.ready")
        assert taken() == 0


async def test_a_client_that_closes_during_the_authentication_leaves_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cast = make()
    gone = asyncio.Event()
    authenticate = cast.authenticator.authenticate

    async def late(asked: Any) -> Any:
        grant = await authenticate(asked)
        await gone.wait()
        return grant

    monkeypatch.setattr(cast.authenticator, "authenticate", late)
    async with connected(cast.asgi(), request(cast, "t")) as client:
        await client.writer.drain()
        client.writer.transport.abort()
        await asyncio.sleep(0.1)
        gone.set()
        await asyncio.sleep(0.1)
        assert cast.hub.streams_count == 0


class Outer(BaseHTTPMiddleware):
    async def dispatch(self, asked: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        answer = await call_next(asked)
        answer.headers["x-outer"] = "yes"
        return answer


class Holding:
    """Holds the head back until there is a body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head: list[Message] = []

        async def later(message: Message) -> None:
            if message["type"] == "http.response.start":
                head.append(message)
                return
            while head:
                await send(head.pop())
            await send(message)

        await self._app(scope, receive, later)


class Adding:
    """A plain ASGI middleware that adds a header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def adding(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-outer", b"yes")]}
            await send(message)

        await self._app(scope, receive, adding)


@pytest.mark.parametrize(("middleware", "takes"), [(Outer, False), (Holding, False), (Adding, True), (None, True)])
async def test_middlewares_see_the_head(make: Make, middleware: Any, takes: bool) -> None:
    cast = make()
    app = cast.asgi()
    if middleware is not None:
        app.add_middleware(middleware)
    async with connected(app, request(cast, "t")) as client:
        await client.until(b"rowcast.ready")
        assert taken() == takes
        assert (b"x-outer: yes" in client.got) is (middleware in (Outer, Adding))
        await cast.publish("t", {"n": 1})
        await client.until(b'"n":1')
        await cast.disconnect("ann")
        await client.end()
        assert client.got.count(b"rowcast.bye") == 1


async def test_through_tls(make: Make, tmp_path: Path) -> None:
    cast = make()
    authority = Authority(tmp_path)
    trusting = authority.trust()
    file, key = authority.issue("server")
    options = {"ssl_keyfile": str(key), "ssl_certfile": str(file)}
    async with connected(cast.asgi(), request(cast, "t"), tls=trusting, **options) as client:
        await client.until(b"rowcast.ready")
        assert taken() == 1
        await cast.publish("t", {"n": 1, "text": "x" * 100_000})
        await client.until(b'"n":1')
        await cast.disconnect("ann")
        await client.until(b"rowcast.bye")


async def test_a_client_that_does_not_read_gets_behind_and_catches_up(make: Make) -> None:
    cast = make(server={"max_event": "256KB"})
    async with serving(cast.asgi()) as other:
        where = (other.base_url.host, other.base_url.port)
        lazy = socket.create_connection(where)
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.setblocking(False)
        loop = asyncio.get_running_loop()
        with contextlib.closing(lazy):
            await loop.sock_sendall(lazy, request(cast, "t"))
            await until(lambda: cast.hub.streams_count == 1)
            (stream,) = cast.hub.streams
            number = 0
            while cast.hub.states()["behind"] == 0:
                number += 1
                await cast.publish("t", {"n": number, "text": "x" * 50_000})
            for _ in range(5):
                number += 1
                await cast.publish("t", {"n": number, "text": "x" * 50_000})
            assert stream.pending_bytes == 0
            got = b""
            async with asyncio.timeout(20):
                while b'"n":%d,' % number not in got or not got.endswith(b"\n\n"):
                    got += await loop.sock_recv(lazy, 1 << 20)
            assert [got.count(b'"n":%d,' % n) for n in range(1, number + 1)] == [1] * number
            await until(lambda: cast.hub.states()["live"] == 1)


@pytest.mark.parametrize("takes", [True, False])
async def test_small_frames_are_not_delayed_whoever_made_the_socket(make: Make, takes: bool) -> None:
    """asyncio sets TCP_NODELAY only where the listening socket was made with its protocol."""
    cast = make()
    kept: list[Any] = []
    kind = takeover.Protocol

    class Watched(kind):  # type: ignore[misc,valid-type]
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            kept.append(transport.get_extra_info("socket"))

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        assert sock.proto == 0
        config = uvicorn.Config(cast.asgi(), http=Watched, ws="none", log_config=None)
        server = uvicorn.Server(config)
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        running = asyncio.create_task(server.serve(sockets=[sock]))
        await until(lambda: server.started)
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        writer.write(request(cast, "t", more="" if takes else "Content-Length: 1\r\n") + (b"" if takes else b"x"))
        client = Client(reader, writer)
        await client.until(b"rowcast.ready")
        assert kept[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert kept[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 16384
        writer.close()
        server.should_exit = True
        await running


@pytest.mark.parametrize("takes", [True, False])
async def test_who_is_disconnected_while_it_is_found_out_who_they_are_gets_no_stream(make: Make, takes: bool) -> None:
    cast = make()
    asked, answer = asyncio.Event(), asyncio.Event()

    async def authenticate(request: Request) -> Grant:
        grant = Grant(request.headers["x-user"])
        asked.set()
        await answer.wait()
        return grant

    def opening(user: str) -> bytes:
        return f"GET /events HTTP/1.1\r\nHost: x\r\nx-user: {user}\r\n\r\n".encode()

    async with connected(cast.asgi(authenticate=authenticate), opening("ann"), takeover=takes) as client:
        await asked.wait()
        await cast.disconnect("ann")
        answer.set()
        await client.until(b'event: rowcast.bye\ndata: {"reason":"unavailable"}\n\n')
        assert b"rowcast.ready" not in client.got
        assert cast.hub.streams_count == 0
    async with connected(cast.asgi(authenticate=authenticate), opening("ann"), takeover=takes) as client:
        await client.until(b"rowcast.ready")
