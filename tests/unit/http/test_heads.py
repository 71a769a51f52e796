"""Limits of a request's head, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from rowcast import Rowcast
from rowcast.http import heads
from rowcast.sockets import LONG_PATIENCE, PATIENCE, be_patient

Make = Callable[..., Rowcast]


POST = b"POST /publish HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nauthorization: Bearer the-api-key\r\n\r\n"


async def opened(client: httpx.AsyncClient) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", client.base_url.port)


async def answer(client: httpx.AsyncClient, *parts: bytes) -> bytes:
    """What comes back until the connection is closed."""
    reader, writer = await opened(client)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(30):
            return await reader.read()
    except ConnectionError:
        return b"cut"
    finally:
        writer.close()


def head(*fields: bytes, close: bool = True) -> bytes:
    end = b"connection: close\r\n\r\n" if close else b"\r\n"
    return b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + b"".join(field + b"\r\n" for field in fields) + end


async def test_a_head_within_the_limits_is_taken(client: httpx.AsyncClient) -> None:
    told = await answer(client, head(*(b"x-%d: 1" % n for n in range(98))))
    assert told.startswith(b"HTTP/1.1 200 ")
    told = await answer(client, head(b"x: " + b"a" * (heads.MAX_HEAD - 200)))
    assert told.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "sent",
    [
        head(*(b"x-%d: 1" % n for n in range(99))),
        head(b"x: " + b"a" * heads.MAX_HEAD),
        head(b"x: " + b"a" * 20_000, b"y: " + b"a" * 20_000),
        b"GET /" + b"a" * heads.MAX_HEAD + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
async def test_a_larger_one_is_refused(client: httpx.AsyncClient, sent: bytes) -> None:
    for parts in ([sent], [sent[:100], sent[100:]]):
        told = await answer(client, *parts)
        assert told.startswith(b"HTTP/1.1 431 ")
        assert b'{"status":431,"error":"the head' in told


async def test_a_value_that_never_ends_is_not_kept(client: httpx.AsyncClient) -> None:
    """The parser tells of a value when it is whole; so much must not be waited for."""
    reader, writer = await opened(client)
    writer.write(b"GET / HTTP/1.1\r\nx: ")
    sent = 0
    try:
        while not reader.at_eof() and sent < 64 << 20:
            writer.write(b"a" * 65_536)
            sent += 65_536
            async with asyncio.timeout(30):
                await writer.drain()
            await asyncio.sleep(0)
    except ConnectionError:
        pass
    finally:
        writer.close()
    assert sent < 32 << 20


async def test_heads_on_one_connection_are_counted_each_for_itself(client: httpx.AsyncClient) -> None:
    big = b"x: " + b"a" * 20_000
    told = await answer(client, head(big, close=False), head(big, close=False), head(big))
    assert told.count(b"HTTP/1.1 200 ") == 3


async def test_too_large_a_head_behind_an_open_answer_cuts_it(
    client: httpx.AsyncClient, bearer: Callable[..., dict[str, str]]
) -> None:
    token = bearer()["authorization"].encode()
    reader, writer = await opened(client)
    writer.write(b"GET /events HTTP/1.1\r\nhost: x\r\nauthorization: " + token + b"\r\n\r\n")
    async with asyncio.timeout(30):
        await reader.readuntil(b"rowcast.ready")
        writer.write(head(*(b"x-%d: %b" % (n, b"1" * 200) for n in range(200))))
        try:
            rest = await reader.read()
        except ConnectionError:
            rest = b""
    writer.close()
    assert b"431" not in rest
    assert b"HTTP/1.1" not in rest


async def test_a_head_that_does_not_arrive_is_not_waited_for(
    make: Make, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "HEAD_TIME", 0.2)
    async with serve(make().asgi()) as client:
        # Nothing at all, half a head, and half of a second one.
        assert await answer(client) == b""
        assert await answer(client, b"GET / HTTP/1.1\r\nhost") == b""
        told = await answer(client, head(close=False), b"GET / HT")
        assert told.startswith(b"HTTP/1.1 200 ")
        # Between two requests a connection may be idle, and a body may take its time.
        reader, writer = await opened(client)
        for _ in range(2):
            writer.write(
                b"POST /publish HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nauthorization: Bearer the-api-key\r\n\r\n"
            )
            await asyncio.sleep(0.4)
            writer.write(b"{}")
            assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 400 ")
            await reader.readuntil(b"}")
            await asyncio.sleep(0.4)
        writer.close()


async def test_a_new_connection_may_still_ask_when_the_server_ends(
    make: Make, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "LAST_CHANCE", 5.0)
    async with serve(make().asgi()) as client:
        reader, writer = await opened(client)
        assert (await client.get("/healthz")).status_code == 200  # by now the server has accepted the other one
        serving = asyncio.create_task(_ask_late(reader, writer))
    told = await serving
    assert told.startswith(b"HTTP/1.1 ")
    assert b"connection: close" in told


async def _ask_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    await asyncio.sleep(0.2)
    writer.write(head(close=False))
    async with asyncio.timeout(30):
        told = await reader.read()
    writer.close()
    return told


def test_a_client_that_does_not_read_is_given_more_time() -> None:
    with socket.socket() as sock:
        for paused, seconds in ((True, LONG_PATIENCE), (False, PATIENCE)):
            be_patient(sock, paused=paused)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == seconds * 1000
        be_patient(None, paused=True)
    be_patient(sock, paused=True)  # closed meanwhile
