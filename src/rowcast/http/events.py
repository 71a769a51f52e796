"""The stream endpoint, `GET /events`: plain ASGI, one `send` per flush.

The head and a first block go out at once, before anything is awaited: some clients and proxies wait for
the first byte. From then on the endpoint only carries what the stream gives (`Stream.take`) to the client.

To a request for a stream, "not now" is said with 200, a jittered `retry:`, `rowcast.bye` and the end, since a
browser's EventSource never comes back after another status (WHATWG HTML, section 9.2.3); only clients that
ask for it (`Accept: application/json` or `Prefer: status`) get a 503. "Never" (400, 401, 403) keeps its status.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from rowcast.core import sse
from rowcast.core.position import Position, parse_position
from rowcast.core.stream import Stream, StreamState
from rowcast.errors import BadRequest, Unavailable
from rowcast.hub import Busy

if TYPE_CHECKING:
    from rowcast.cast import Rowcast

_HEAD = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
]

MAX_NARROW = 1000
"""Topics that one request may narrow its stream to."""


class Events:
    """The ASGI endpoint."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        cast: Rowcast = scope["app"].state.cast
        try:
            grant = await cast.authenticator.authenticate(request)
            cursor = _cursor(request)
            narrow = _narrow(request)
            if request.method == "HEAD":
                await send({"type": "http.response.start", "status": 200, "headers": _HEAD})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            ready = asyncio.Event()
            stream = cast.hub.connect(grant, ready.set, narrow=narrow, cursor=cursor)
        except Unavailable as error:
            if _wants_status(request.headers):
                raise
            await _not_now(send, error)
            return
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEAD})
            await _body(send, sse.retry(round(cast.config.server.retry * 1000)))
            await _carry(stream, ready, receive, send)
        finally:
            cast.hub.drop(stream)


async def _carry(stream: Stream, ready: asyncio.Event, receive: Receive, send: Send) -> None:
    """Write what the stream has until it ends or the client goes away."""
    leaving = asyncio.create_task(_until_disconnect(receive, ready))
    try:
        while True:
            ready.clear()
            data = stream.take()
            if leaving.done():
                return
            if data:
                await _body(send, data)
            elif stream.state is StreamState.ENDED:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            else:
                await ready.wait()
    finally:
        leaving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaving


async def _until_disconnect(receive: Receive, ready: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    ready.set()


async def _not_now(send: Send, error: Unavailable) -> None:
    reason = error.reason if isinstance(error, Busy) else "unavailable"
    bye = sse.frame(b'{"reason":"%s"}' % reason.encode(), event="rowcast.bye")
    # Spread out, so that those who were turned away do not come back together.
    pause = random.randrange(2_000, 8_000)  # noqa: S311
    await send({"type": "http.response.start", "status": 200, "headers": _HEAD})
    await send({"type": "http.response.body", "body": sse.retry(pause) + bye, "more_body": False})


async def _body(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


def _wants_status(headers: Headers) -> bool:
    return "application/json" in headers.get("accept", "") or "status" in headers.get("prefer", "")


def _cursor(request: Request) -> Position | None:
    """The client's last position: the header that browsers send, or the query for those that can't."""
    text = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
    return parse_position(text) if text else None


def _narrow(request: Request) -> frozenset[str] | None:
    text = request.query_params.get("topics")
    if text is None:
        return None
    topics = frozenset(topic for part in text.split(",") if (topic := part.strip()))
    if not topics:
        raise BadRequest("?topics= names no topic: write ?topics=a,b or leave it out for all of them")
    if len(topics) > MAX_NARROW:
        raise BadRequest(f"?topics= names {len(topics)} topics; at most {MAX_NARROW} are allowed")
    return topics


events = Events()
