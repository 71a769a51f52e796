"""Publish, control and count over real sockets: what they do, and everything that they refuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from rowcast import Rowcast
from rowcast.testing.stream import OpenStream

KEY = {"authorization": "Bearer the-api-key"}

Bearer = Callable[..., dict[str, str]]


def stream(client: httpx.AsyncClient, headers: dict[str, str], **params: str) -> OpenStream:
    token = headers["authorization"].removeprefix("Bearer ")
    return OpenStream(str(client.base_url).rstrip("/"), token, params=params or None)


def failed(answer: httpx.Response, status: int) -> str:
    """Check the shape of an error, and return its words."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-rowcast-replica"] == "r1"
    body = answer.json()
    assert body["status"] == status
    words: str = body["error"]
    assert words
    return words


# What it does


async def test_what_is_published_on_a_topic_arrives(client: httpx.AsyncClient, bearer: Bearer) -> None:
    async with stream(client, bearer("alice", "news")) as alice:
        await alice.ready()
        answer = await client.post(
            "/publish", headers=KEY, json={"topic": "news", "data": {"n": 1}, "event": "note", "key": "k"}
        )
        assert answer.status_code == 202
        block = await alice.expect(lambda block: block.event == "note")
    assert answer.json() == {"id": block.id}
    assert block.data == {"topic": "news", "data": {"n": 1}, "key": "k"}


async def test_what_is_published_to_a_user_arrives_there_only(client: httpx.AsyncClient, bearer: Bearer) -> None:
    async with stream(client, bearer("alice")) as alice, stream(client, bearer("bob")) as bob:
        await alice.ready()
        await bob.ready()
        for user, data in (("alice", "for alice"), ("bob", "for bob")):
            assert (await client.post("/publish", headers=KEY, json={"user": user, "data": data})).status_code == 202
        await alice.until(lambda: bool(alice.events()))
        await bob.until(lambda: bool(bob.events()))
        assert alice.events() == [{"topic": "user:alice", "data": "for alice"}]
        assert bob.events() == [{"topic": "user:bob", "data": "for bob"}]


@pytest.mark.parametrize(
    "data",
    [
        '{"price": 1.10, "big": 123456789012345678901234567890, "far": 1e400}',
        "null",
        '"a\\u2028b\\u0000c"',
        "[1,\r\n 2]",
        '{"ключ": "🐘"}',
    ],
)
async def test_data_is_passed_on_digit_by_digit_on_one_line(
    client: httpx.AsyncClient, bearer: Bearer, data: str
) -> None:
    headers = bearer("alice", "t")
    async with client.stream("GET", "/events", headers=headers) as events:
        lines = events.aiter_bytes()
        received = await anext(lines)
        assert b"retry: 1000" in received
        body = b'{"topic":"t","data":' + data.encode() + b"}"
        assert (await client.post("/publish", headers=KEY, content=body)).status_code == 202
        async for chunk in lines:
            received += chunk
            if received.count(b"data: ") == 2:
                break
    line = received.rsplit(b"data: ", 1)[1].removesuffix(b"\n\n")
    assert b"\n" not in line
    squeezed = data if data.startswith('"') else data.replace(" ", "").replace("\r\n", "")
    assert line.decode() == '{"topic":"t","data":' + squeezed + "}"


async def test_resubscribe_is_answered_on_the_stream(client: httpx.AsyncClient, bearer: Bearer) -> None:
    async with stream(client, bearer("alice", "t")) as alice:
        await alice.ready()
        answer = await client.post("/control/resubscribe", headers=KEY, json={"user": "alice"})
        assert answer.status_code == 202
        block = await alice.expect(lambda block: block.event == "rowcast.subscriptions")
    assert block.id == answer.json()["id"]
    assert block.data == {"added": [], "removed": [], "topics": ["t"]}


async def test_disconnect_ends_streams_and_refuses_the_token(client: httpx.AsyncClient, bearer: Bearer) -> None:
    headers = bearer("alice")
    async with stream(client, headers) as alice, stream(client, bearer("bob")) as bob:
        await alice.ready()
        await bob.ready()
        answer = await client.post("/control/disconnect", headers=KEY, json={"user": "alice"})
        assert answer.status_code == 202
        assert answer.json()["id"]
        await alice.until(lambda: alice.ended)
        assert alice.events("rowcast.bye") == [{"reason": "disconnected"}]
        assert not bob.ended
    assert "disconnected" in failed(await client.get("/events", headers=headers), 401)
    async with stream(client, bearer("alice")) as again:
        assert (await again.ready())["user"] == "alice"


async def test_control_of_a_user_whom_nobody_knows_is_accepted(client: httpx.AsyncClient) -> None:
    # Nobody here can tell whether the user has a stream on another replica.
    for action in ("resubscribe", "disconnect"):
        answer = await client.post(f"/control/{action}", headers=KEY, json={"user": "nobody, ever 🐘"})
        assert answer.status_code == 202


async def test_open_streams_are_counted(make: Callable[..., Rowcast], serve: Any, bearer: Bearer) -> None:
    async with serve(make().asgi()) as client:
        assert (await client.get("/events/count", headers=KEY)).json() == {"count": 0, "replicas": {"r1": 0}}
        async with stream(client, bearer("alice")) as one, stream(client, bearer("alice")) as two:
            await one.ready()
            await two.ready()
            assert (await client.get("/events/count", headers=KEY)).json() == {"count": 2, "replicas": {"r1": 2}}


# The key

CALLS = [
    ("POST", "/publish"),
    ("POST", "/control/resubscribe"),
    ("POST", "/control/disconnect"),
    ("GET", "/events/count"),
]


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize(
    "given", [None, "Bearer wrong", "Bearer", "Basic dGhlLWFwaS1rZXk=", "the-api-key", "Bearer \xff"]
)
async def test_a_wrong_key_is_refused(client: httpx.AsyncClient, method: str, path: str, given: str | None) -> None:
    headers = {} if given is None else {"authorization": given.encode("latin-1")}
    answer = await client.request(method, path, headers=headers)
    assert "API key" in failed(answer, 401)
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_a_users_token_is_not_the_key(client: httpx.AsyncClient, bearer: Bearer, method: str, path: str) -> None:
    failed(await client.request(method, path, headers=bearer("alice")), 401)


@pytest.mark.parametrize(("method", "path"), CALLS)
async def test_without_a_configured_key_the_calls_are_off(
    make: Callable[..., Rowcast], serve: Any, method: str, path: str
) -> None:
    async with serve(make(api={}).asgi()) as client:
        assert "set [api] key" in failed(await client.request(method, path, headers=KEY), 403)


# Bodies


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b'{"topic":"t","data":"\xff"}', "no JSON"),
        (b'{"topic":"t","data":NaN}', "no JSON"),
        (b'{"topic":"t","data":1} x', "no JSON"),
        (b'{"topic":"t","data":"\\ud800"}', "no JSON"),
        (b'{"topic":"t","data":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deep"),
        (b"[]", "got `array`"),
        (b'"x"', "got `str`"),
        (b"null", "got `null`"),
        (b'{"topic":"t"}', "`data`"),
        (b'{"topic":"t","data":1,"colour":"red"}', "unknown field `colour`"),
        (b'{"topic":1,"data":1}', "$.topic"),
        (b'{"topic":["t"],"data":1}', "$.topic"),
        (b'{"user":true,"data":1}', "$.user"),
        (b'{"topic":"t","data":1,"event":5}', "$.event"),
        (b'{"topic":"t","data":1,"key":{}}', "$.key"),
        (b'{"data":1}', "either a topic or a user"),
        (b'{"topic":null,"user":null,"data":1}', "either a topic or a user"),
        (b'{"topic":"t","user":"u","data":1}', "either a topic or a user"),
        (b'{"topic":"","data":1}', "topic"),
        (b'{"user":"","data":1}', "user"),
        (b'{"topic":"a\\nb","data":1}', "topic"),
        (b'{"topic":"a\\rb","data":1}', "topic"),
        (b'{"topic":"a\\u0000b","data":1}', "topic"),
        (b'{"user":"a\\nb","data":1}', "user"),
        (b'{"topic":"t","data":1,"event":"a\\nb"}', "event"),
        (b'{"topic":"t","data":1,"event":""}', "event"),
        (b'{"topic":"t","data":1,"event":"rowcast.reset"}', "choose another name"),
        (b'{"topic":"t","data":1,"key":"a\\u0000"}', "key"),
        (b'{"topic":"' + b"x" * 513 + b'","data":1}', "512"),
    ],
)
async def test_bodies_of_publish_that_are_refused(client: httpx.AsyncClient, body: bytes, words: str) -> None:
    assert words in failed(await client.post("/publish", headers=KEY, content=body), 400)


async def test_a_topic_of_512_characters_is_fine(client: httpx.AsyncClient) -> None:
    answer = await client.post("/publish", headers=KEY, json={"topic": "🐘" * 512, "data": 1})
    assert answer.status_code == 202


@pytest.mark.parametrize("action", ["resubscribe", "disconnect"])
@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b'{"user":1}', b'{"user":""}', b'{"user":"a\\n"}', b'{"user":"a","x":1}', b'{"user":null}'],
)
async def test_bodies_of_control_that_are_refused(client: httpx.AsyncClient, action: str, body: bytes) -> None:
    failed(await client.post(f"/control/{action}", headers=KEY, content=body), 400)


async def test_large_data_is_refused(make: Callable[..., Rowcast], serve: Any) -> None:
    async with serve(make(server={"max_event": "1KB"}).asgi()) as client:
        fits = await client.post("/publish", headers=KEY, json={"topic": "t", "data": "x" * 1000})
        assert fits.status_code == 202
        answer = await client.post("/publish", headers=KEY, json={"topic": "t", "data": "x" * 1023})
        assert "[server] max_event" in failed(answer, 413)


async def test_a_large_body_is_refused_by_its_length(client: httpx.AsyncClient) -> None:
    answer = await client.post("/publish", headers=KEY, content=b"x" * (1 << 20))
    assert "327680" in failed(answer, 413)


async def test_a_large_body_is_refused_while_it_is_read(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 16
            yield b"x" * (1 << 16)

    # Chunked, so that no length says it beforehand; it would never end by itself.
    try:
        answer = await client.post("/publish", headers=KEY, content=endless())
    except httpx.TransportError:
        pass  # the server closed the connection while we were still writing
    else:
        failed(answer, 413)
    assert sent < 64 << 20
    assert (await client.get("/healthz")).status_code == 200


async def test_the_service_goes_on_when_a_client_breaks_off(client: httpx.AsyncClient) -> None:
    _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(
        b"POST /publish HTTP/1.1\r\nhost: x\r\nauthorization: Bearer the-api-key\r\ncontent-length: 99\r\n\r\n{"
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    answer = await client.post("/publish", headers=KEY, json={"topic": "t", "data": 1})
    assert answer.status_code == 202


async def test_while_the_log_is_closed_nothing_is_published(make: Callable[..., Rowcast], serve: Any) -> None:
    cast = make()
    async with serve(cast.asgi()) as client:
        await cast.log.close()
        answer = await client.post("/publish", headers=KEY, json={"topic": "t", "data": 1})
        assert "not published" in failed(answer, 503)
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["down"] == "log"
