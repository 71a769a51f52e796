"""The stream endpoint, `GET /events`.

The head and a first block go out at once, before anything is awaited: some clients and proxies wait for the first
byte. Then the stream takes the transport over where the server offers that (see `takeover`), and the request is done;
elsewhere the endpoint carries what the stream gives (`Stream.take`) to the client, by one `send` per flush.

To a request for a stream, "not now" is said with 200, a jittered `retry:`, `rowcast.bye` and the end, since a
browser's EventSource never comes back after another status (WHATWG HTML, section 9.2.3); only clients that
ask for it (`Accept: application/json` or `Prefer: status`) get a 503. "Never" (400, 401, 403) keeps its status.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from rowcast import jitter
from rowcast.core import sse
from rowcast.core.grants import Grant
from rowcast.core.position import Position, parse_position
from rowcast.core.stream import Stream, StreamState
from rowcast.errors import BadRequest, Busy, Unavailable
from rowcast.fields import field
from rowcast.http.taken import END_LIMIT, TakenWriter
from rowcast.http.takeover import Outcome, offered
from rowcast.hub import Hub
from rowcast.telemetry.journal import get_logger

if TYPE_CHECKING:
    from rowcast.cast import Rowcast

logger = get_logger(__name__)

_HEAD = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
]

_NO_QUERY: Mapping[str, str] = {}

MAX_NARROW = 1000
"""Topics that one request may narrow its stream to."""


class Events:
    """The ASGI endpoint. `grant` says whose stream a request may have (None: as for the whole application)."""

    def __init__(self, grant: Callable[[Request], Awaitable[Grant]] | None = None) -> None:
        self._grant = grant

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        cast: Rowcast = scope["app"].state.cast
        try:
            hub = cast.hub
            hub.admit(len(hub.doors))
            await hub.doors.enter()
            asked = hub.dismissed.number
            grant = await (self._grant or scope["app"].state.authenticate)(request)
            query = request.query_params if scope["query_string"] else _NO_QUERY
            cursor = _cursor(request, query)
            narrow = _narrow(query)
            snapshot = _snapshot(query)
            if request.method == "HEAD":
                await send({"type": "http.response.start", "status": 200, "headers": _HEAD})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            hub.admit()
        except Unavailable as error:
            if cast.running:
                cast.hub.refused[_reason(error)] += 1
            if _wants_status(request.headers):
                raise
            # Many of them would hold their connections open, idle, for as long as it takes to come back.
            closing = [(b"connection", b"close")] if scope["http_version"].startswith("1") else []
            await send({"type": "http.response.start", "status": 200, "headers": [*_HEAD, *closing]})
            await send({"type": "http.response.body", "body": _not_now(error), "more_body": False})
            return
        connect = partial(hub.connect, grant, narrow=narrow, cursor=cursor, snapshot=snapshot, asked=asked)
        first = sse.retry(round(cast.config.server.retry * 1000))
        takeover = offered(scope)
        if takeover is not None and not takeover.prepare():
            takeover = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEAD})
        except BaseException:
            if takeover is not None:
                takeover.give_up()
            raise
        if takeover is not None:
            taken = TakenWriter(hub)
            outcome = takeover.take(taken)
            if outcome is Outcome.TAKEN:
                _carry(taken, hub, connect, first)
            if outcome is not Outcome.PLAIN:
                return
        writer = _Writer(send, hub)
        try:
            writer.stream = stream = connect(writer.wake)
        except Unavailable as error:  # it was admitted, but the head took its time
            hub.refused[_reason(error)] += 1
            await send({"type": "http.response.body", "body": _not_now(error), "more_body": False})
            return
        try:
            await writer.run(receive, first=first)
        finally:
            hub.leave(stream)


def _carry(writer: TakenWriter, hub: Hub, connect: Callable[[Callable[[], None]], Stream], first: bytes) -> None:
    """Open the stream of a transport that was taken over. What it has to say at once goes out with the first block."""
    try:
        writer.carry(connect(writer.wake), first)
    except Exception as error:
        if not isinstance(error, Unavailable):
            logger.exception("stream_failed", "a stream could not be opened")
            error = Unavailable("the stream could not be opened", what="streams")
        hub.refused[_reason(error)] += 1
        writer.close(first + _not_now(error))


class _Writer:
    """Writes what a stream has until it ends or the client goes away.

    An ended stream is counted no more, so a client that does not read must not keep its connection: what is
    left may take END_LIMIT.
    """

    def __init__(self, send: Send, hub: Hub) -> None:
        self.stream: Stream | None = None
        self._send = send
        self._hub = hub
        self._page = b""
        self._ready = asyncio.Event()
        self._limit: asyncio.Timeout | None = None

    def wake(self) -> None:
        """There is something to take, or the stream has ended.

        A page of what it missed is taken here: the flush counts the time of it, and the task would have none of that.
        """
        try:
            if self.stream is not None and self.stream.state is StreamState.BEHIND and not self._page:
                self._page = self.stream.take()
        finally:
            self._ready.set()  # whatever happens: the connection would be silent for ever
        ended = self.stream is not None and self.stream.state is StreamState.ENDED
        if ended and self._limit is not None and self._limit.when() is None:
            self._limit.reschedule(asyncio.get_running_loop().time() + END_LIMIT)

    async def run(self, receive: Receive, *, first: bytes) -> None:
        """Send a first block at once, then whatever the stream gives."""
        leaving = asyncio.create_task(self._until_disconnect(receive))
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None) as self._limit:
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
            data, self._page = self._page, b""
            if not data and stream.state is not StreamState.BEHIND:
                data = stream.take()
            if data:
                await self._body(data)
                if stream.state is StreamState.BEHIND:
                    # A server's `send` need not wait for anything: the others have their turn between two pages.
                    self._hub.again(stream)
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


def _reason(error: Unavailable) -> str:
    return error.reason if isinstance(error, Busy) else "unavailable"


def _not_now(error: Unavailable) -> bytes:
    reason = _reason(error)
    bye = sse.frame(b'{"reason":"%s"}' % reason.encode(), event="rowcast.bye")
    # While we drain, another replica is there to be had.
    pause = jitter.retry(0.5, 2.0) if reason == "draining" else jitter.retry(2.0, 8.0)
    return sse.retry(pause) + bye


def _wants_status(headers: Headers) -> bool:
    return "application/json" in headers.get("accept", "") or "status" in headers.get("prefer", "")


def _cursor(request: Request, query: Mapping[str, str]) -> Position | None:
    """The client's last position: the header that browsers send, or the query for those that can't."""
    text = field(request, b"last-event-id") or query.get("last_event_id")
    return parse_position(text) if text else None


def _snapshot(query: Mapping[str, str]) -> bool:
    text = query.get("snapshot", "0")
    if text not in ("0", "1"):
        raise BadRequest("?snapshot= is 1, for the current rows of the topics before the tail, or 0")
    return text == "1"


def _narrow(query: Mapping[str, str]) -> frozenset[str] | None:
    text = query.get("topics")
    if text is None:
        return None
    topics = frozenset(topic for part in text.split(",") if (topic := part.strip()))
    if not topics:
        raise BadRequest("?topics= names no topic: write ?topics=a,b or leave it out for all of them")
    if len(topics) > MAX_NARROW:
        raise BadRequest(f"?topics= names {len(topics)} topics; at most {MAX_NARROW} are allowed")
    return topics


events = Events()
