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
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from rowcast import jitter
from rowcast.core import sse
from rowcast.core.grants import Grant
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

END_LIMIT = 5.0
"""Seconds that the last blocks of a stream may take to be sent."""

MAX_NARROW = 1000
"""Topics that one request may narrow its stream to."""


class Events:
    """The ASGI endpoint. `grant` says whose stream a request may have (None: what its token says)."""

    def __init__(self, grant: Callable[[Request], Awaitable[Grant]] | None = None) -> None:
        self._grant = grant

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        cast: Rowcast = scope["app"].state.cast
        try:
            grant = await (self._grant or cast.authenticator.authenticate)(request)
            cursor = _cursor(request)
            narrow = _narrow(request)
            snapshot = _snapshot(request)
            if request.method == "HEAD":
                await send({"type": "http.response.start", "status": 200, "headers": _HEAD})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            hub = cast.hub
            writer = _Writer(send)
            writer.stream = stream = hub.connect(grant, writer.wake, narrow=narrow, cursor=cursor, snapshot=snapshot)
        except Unavailable as error:
            if _wants_status(request.headers):
                raise
            await _not_now(send, error)
            return
        try:
            await writer.run(receive, first=sse.retry(round(cast.config.server.retry * 1000)))
        finally:
            hub.drop(stream)


class _Writer:
    """Writes what a stream has until it ends or the client goes away.

    An ended stream is counted no more, so a client that does not read must not keep its connection: what is
    left may take END_LIMIT.
    """

    def __init__(self, send: Send) -> None:
        self.stream: Stream | None = None
        self._send = send
        self._ready = asyncio.Event()
        self._limit: asyncio.Timeout | None = None

    def wake(self) -> None:
        """There is something to take, or the stream has ended."""
        self._ready.set()
        ended = self.stream is not None and self.stream.state is StreamState.ENDED
        if ended and self._limit is not None and self._limit.when() is None:
            self._limit.reschedule(asyncio.get_running_loop().time() + END_LIMIT)

    async def run(self, receive: Receive, *, first: bytes) -> None:
        """Send the head and a first block at once, then whatever the stream gives."""
        leaving = asyncio.create_task(self._until_disconnect(receive))
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None) as self._limit:
                    await self._send({"type": "http.response.start", "status": 200, "headers": _HEAD})
                    await self._body(first)
                    await self._carry(leaving)
        finally:
            leaving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await leaving

    async def _carry(self, leaving: asyncio.Task[None]) -> None:
        stream = self.stream
        assert stream is not None
        while not leaving.done():
            self._ready.clear()
            data = stream.take()
            if data:
                await self._body(data)
            elif stream.state is StreamState.ENDED:
                await self._body(b"", more=False)
                return
            else:
                await self._ready.wait()

    async def _body(self, data: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def _until_disconnect(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._ready.set()


async def _not_now(send: Send, error: Unavailable) -> None:
    reason = error.reason if isinstance(error, Busy) else "unavailable"
    bye = sse.frame(b'{"reason":"%s"}' % reason.encode(), event="rowcast.bye")
    # While we drain, another replica is there to be had.
    pause = jitter.retry(0.5, 2.0) if reason == "draining" else jitter.retry(2.0, 8.0)
    await send({"type": "http.response.start", "status": 200, "headers": _HEAD})
    await send({"type": "http.response.body", "body": sse.retry(pause) + bye, "more_body": False})


def _wants_status(headers: Headers) -> bool:
    return "application/json" in headers.get("accept", "") or "status" in headers.get("prefer", "")


def _cursor(request: Request) -> Position | None:
    """The client's last position: the header that browsers send, or the query for those that can't."""
    text = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
    return parse_position(text) if text else None


def _snapshot(request: Request) -> bool:
    text = request.query_params.get("snapshot", "0")
    if text not in ("0", "1"):
        raise BadRequest("?snapshot= is 1, for the current rows of the topics before the tail, or 0")
    return text == "1"


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
