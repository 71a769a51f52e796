"""One origin for the browser: a small streaming reverse proxy in front of the replicas.

Streams go to the replica that holds the fewest, without stickiness. Reads and writes of channels go to a
replica that does *not* hold the asking client's stream, where two are up: the demo wants to show that it
makes no difference.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from rowcast.demo.supervisor import Replica, Supervisor

CLIENT = "client"
"""Query parameter (of /events) and, with `x-demo-` before it, header: which page is asking."""

MAX_BODY = 64 * 1024
"""Bytes that a proxied write may carry."""

_REQUEST_HEADERS = ("accept", "authorization", "content-type", "last-event-id")
_RESPONSE_HEADERS = ("content-type", "cache-control", "x-accel-buffering", "x-rowcast-replica", "retry-after")

# EventSource gives up for good on any status but 200, so "not now" is said with 200 and an early end.
_NOT_NOW = b'retry: 500\n\nevent: rowcast.bye\ndata: {"reason":"unavailable"}\n\n'


@dataclass(eq=False)
class Held:
    """An open stream: which replica holds it for which client."""

    client: str
    replica: Replica


class Proxy:
    """Forwards to the live replicas of `supervisor`, and knows which of them holds whose stream."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._held: list[Held] = []
        self._turn = itertools.count()
        self._ending = asyncio.Event()
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(5.0, read=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            # The replicas are on this machine: a proxy from the environment must not come between.
            trust_env=False,
        )

    def end_streams(self) -> None:
        """End every open stream, and each that still comes at once."""
        self._ending.set()

    async def close(self) -> None:
        """Close what is open to the replicas."""
        await self._http.aclose()

    def holder(self, client: str) -> Replica | None:
        """The replica that holds the client's stream, the newest if it has several; None if none does."""
        for held in reversed(self._held):
            if held.client == client:
                return held.replica
        return None

    def streams(self, replica: Replica) -> int:
        """How many streams of the demo's pages the replica holds."""
        return sum(held.replica is replica for held in self._held)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET /events: an ASGI application, since it has to end when either side does."""
        request = Request(scope, receive)
        client = request.query_params.get(CLIENT, "")
        query = urlencode([pair for pair in parse_qsl(scope["query_string"].decode()) if pair[0] != CLIENT])
        for replica in self._candidates():
            try:
                upstream = await self._http.send(self._request(request, replica, query), stream=True)
            except httpx.TransportError:
                continue
            break
        else:
            await _answer(send, 200, [(b"content-type", b"text/event-stream")], _NOT_NOW)
            return
        held = Held(client, replica)
        self._held.append(held)
        try:
            await self._relay(upstream, receive, send)
        finally:
            self._held.remove(held)
            await upstream.aclose()

    async def channels(self, request: Request) -> Response:
        """/users/me/channels…: one request, one answer, by the replica that does not hold the stream."""
        body = await request.body()
        if len(body) > MAX_BODY:
            return error(413, f"the body is larger than {MAX_BODY} bytes")
        holder = self.holder(request.headers.get(f"x-demo-{CLIENT}", ""))
        # Stable sort: the holder comes last, the others keep the order of fewest streams.
        for replica in sorted(self._candidates(), key=lambda candidate: candidate is holder):
            try:
                upstream = await self._http.send(self._request(request, replica, request.url.query, body))
            except httpx.ConnectError:
                continue  # it never got there, so another may be asked even for a write
            except httpx.TransportError:
                return error(503, f"replica {replica.name} broke off; ask again")
            headers = _pick(upstream.headers) | {"x-demo-replica": replica.name}
            return Response(upstream.content, upstream.status_code, headers)
        return error(503, "no replica is up; one is started again in a few seconds")

    async def _relay(self, upstream: httpx.Response, receive: Receive, send: Send) -> None:
        """Pass the stream on until the replica ends it or dies, the browser goes away, or the demo ends."""
        headers = [(name.encode(), value.encode()) for name, value in _pick(upstream.headers).items()]
        await send({"type": "http.response.start", "status": upstream.status_code, "headers": headers})
        tasks = [
            asyncio.create_task(_pump(upstream.aiter_raw(), send)),
            asyncio.create_task(_gone(receive)),
            asyncio.create_task(self._ending.wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await send({"type": "http.response.body", "body": b""})

    def _candidates(self) -> list[Replica]:
        turn = next(self._turn)
        live = self._supervisor.live()
        rotated = live[turn % len(live) :] + live[: turn % len(live)] if live else []
        return sorted(rotated, key=self.streams)

    def _request(self, request: Request, replica: Replica, query: str, body: bytes = b"") -> httpx.Request:
        headers = {name: request.headers[name] for name in _REQUEST_HEADERS if name in request.headers}
        url = httpx.URL(replica.url, raw_path=f"{request.url.path}?{query}".encode())
        return self._http.build_request(request.method, url, headers=headers, content=body)


def error(status: int, message: str) -> JSONResponse:
    """An error in the form that Rowcast's own API has."""
    return JSONResponse({"status": status, "error": message}, status)


async def _pump(chunks: AsyncIterator[bytes], send: Send) -> None:
    # A replica that dies is to the browser an end like any other: it comes back.
    with contextlib.suppress(httpx.TransportError):
        async for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _pick(headers: httpx.Headers) -> dict[str, str]:
    return {name: headers[name] for name in _RESPONSE_HEADERS if name in headers}
