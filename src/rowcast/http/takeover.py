"""The takeover: a stream's transport is taken from uvicorn once the head is sent.

`Protocol` is uvicorn's httptools protocol that offers an ASGI extension, `scope["extensions"]["rowcast.takeover"]`,
with every clean GET. The stream endpoint uses it where it is there: the head goes out as `http.response.start` through
the whole ASGI stack, so that CORS and the application's own middlewares see it; then the transport gets another
protocol, the ASGI task ends, and of the request nothing stays. `rowcast serve` uses it; any uvicorn does that is told
`http="rowcast.http.takeover:Protocol"`.

Under another server, or where something stands in the way, the stream goes through ASGI `send` as ever:

- the application runs in a task of its own (Starlette's BaseHTTPMiddleware), and so would be waited for;
- a middleware holds the head back, or gives it a length or a transfer coding;
- there is more on the connection than this one request: a body, or a second request after it.

The body is close-delimited (RFC 9112, section 6.3): it has no chunks, and ends with the connection.
"""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import MutableMapping
from enum import Enum
from typing import Any

import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from rowcast.http.heads import LimitedProtocol
from rowcast.http.taken import TakenWriter
from rowcast.sockets import tune, tuned
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

EXTENSION = "rowcast.takeover"

_NEEDED: dict[type, tuple[str, ...]] = {
    HttpToolsProtocol: ("connections", "cycle", "flow", "parser", "pipeline", "scope", "transport"),
    RequestResponseCycle: (
        "body", "chunked_encoding", "disconnected", "expected_content_length", "keep_alive", "message_event",
        "more_body", "response_complete", "response_started", "scope", "transport", "waiting_for_100_continue",
    ),
    FlowControl: ("write_paused",),
}  # fmt: skip
"""The attributes that are read or set, by the class whose `__init__` makes them."""

_METHODS: dict[type, tuple[str, ...]] = {
    HttpToolsProtocol: ("connection_made", "on_headers_complete", "_unset_keepalive_if_required"),
    RequestResponseCycle: ("run_asgi", "send"),
    FlowControl: ("resume_reading",),
}


def guard() -> str | None:
    """What this uvicorn lacks that the takeover needs; None: nothing."""
    for owner, names in _NEEDED.items():
        made = owner.__init__.__code__.co_names  # type: ignore[misc]  # looked at, not called
        for name in names:
            if name not in made:
                return f"uvicorn {uvicorn.__version__} has no {owner.__name__}.{name}"
    for owner, names in _METHODS.items():
        for name in names:
            if not callable(getattr(owner, name, None)):
                return f"uvicorn {uvicorn.__version__} has no {owner.__name__}.{name}()"
    if not inspect.iscoroutinefunction(RequestResponseCycle.run_asgi):
        return f"uvicorn {uvicorn.__version__} runs applications in another way"
    return None


LACK = guard()
"""What stands in the way of every takeover, or None."""


def warn() -> None:
    """Say in the log if streams can't be taken over: they are served all the same, at a higher price."""
    if LACK is not None:
        logger.warning("takeover_unavailable", "streams are not taken over from the server, and cost more: %s", LACK)


MAX_ADDRESSES = 64
"""Addresses of one server of which it is remembered that their connections inherit our options."""

_INHERITING: weakref.WeakKeyDictionary[ServerState, set[Any]] = weakref.WeakKeyDictionary()


class Outcome(Enum):
    """What became of an attempt to take a transport over."""

    TAKEN = "taken"
    PLAIN = "plain"
    """Go on with `send`."""
    GONE = "gone"
    """There is nobody to be sent anything."""


class _Head:
    """A transport while the head is sent, which then goes out with the first blocks: each write costs a system call."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.held = b""

    def write(self, data: bytes) -> None:
        """Hold it back."""
        self.held += data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


class Takeover:
    """The extension: one request's way to its transport. Bound to its own request, not to the connection's latest."""

    __slots__ = ("_cycle", "_head", "_keep_alive", "_protocol")

    def __init__(self, protocol: Protocol, cycle: RequestResponseCycle) -> None:
        # Weak: the request's scope holds us, and must go when the request does.
        self._protocol = weakref.ref(protocol)
        self._cycle = weakref.ref(cycle)
        self._keep_alive = True
        self._head: _Head | None = None

    def prepare(self) -> bool:
        """Before the head is sent: whether the transport may be taken after it. If so, the head will say that the
        body ends with the connection."""
        protocol, cycle = self._protocol(), self._cycle()
        if protocol is None or cycle is None or not _clean(protocol, cycle) or not _runs_us():
            return False
        self._keep_alive = cycle.keep_alive
        cycle.keep_alive = False
        cycle.chunked_encoding = False
        self._head = _Head(cycle.transport)
        cycle.transport = self._head  # type: ignore[assignment]
        return True

    def give_up(self) -> None:
        """The transport will not be taken: what was sent of the head goes out."""
        if head := self._held():
            protocol = self._protocol()
            if protocol is not None and not protocol.transport.is_closing():
                protocol.transport.write(head)

    def take(self, writer: TakenWriter) -> Outcome:
        """After the head: hand the transport, and the head that was sent, to a writer."""
        outcome = self._take(writer)
        if outcome is Outcome.PLAIN:
            self.give_up()
        return outcome

    def _held(self) -> bytes:
        """The head, which is no longer held back."""
        head, self._head = self._head, None
        cycle = self._cycle()
        if head is None or cycle is None:
            return b""
        cycle.transport = head.transport
        return head.held

    def _take(self, writer: TakenWriter) -> Outcome:
        protocol, cycle = self._protocol(), self._cycle()
        if protocol is None or cycle is None or cycle.disconnected:
            return Outcome.GONE
        if not cycle.response_started:
            cycle.chunked_encoding = None
            cycle.keep_alive = self._keep_alive
            return Outcome.PLAIN
        if cycle.chunked_encoding or cycle.expected_content_length:
            return Outcome.PLAIN
        transport = protocol.transport
        # Whatever the application or a middleware still sends goes nowhere, and uvicorn leaves the transport alone.
        cycle.disconnected = True
        cycle.message_event.set()
        if transport.is_closing():
            return Outcome.GONE
        protocol._unset_keepalive_if_required()
        protocol.pipeline.clear()
        protocol.flow.resume_reading()  # or a client's end might go unseen
        protocol.connections.discard(protocol)
        writer.take_over(transport, protocol.connections, self._held(), full=protocol.flow.write_paused)
        protocol.parser = None  # type: ignore[assignment]  # as uvicorn does at the end: it holds the protocol, and the protocol holds it
        return Outcome.TAKEN


class Protocol(LimitedProtocol):
    """uvicorn's httptools protocol, with limits of the head, that lets streams take their transports over."""

    _unfinished: tuple[RequestResponseCycle, ...] = ()
    """Requests that were under way when another one came after them on the connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection was accepted. Its options do not depend on whose listening socket it came from."""
        super().connection_made(transport)
        inheriting = _INHERITING.setdefault(self.server_state, set())
        if self.server in inheriting:
            return
        sock = transport.get_extra_info("socket")
        if tuned(sock):
            if len(inheriting) < MAX_ADDRESSES:
                inheriting.add(self.server)
        else:
            tune(sock)

    def on_headers_complete(self) -> None:
        """A request's head was read."""
        before = self.cycle
        super().on_headers_complete()
        cycle = self.cycle
        if self.pipeline and before is not None:
            self._unfinished = (*self._unfinished, before)
        if LACK is None and cycle is not before and cycle.scope["method"] == "GET" and not self.pipeline:
            scope: MutableMapping[str, Any] = cycle.scope  # type: ignore[assignment]
            scope["extensions"] = {**scope.get("extensions", {}), EXTENSION: Takeover(self, cycle)}

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone. uvicorn tells the latest request only, and a stream before it would never know."""
        for cycle in self._unfinished:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self._unfinished = ()
        super().connection_lost(exc)


def offered(scope: Any) -> Takeover | None:
    """The extension of a request, where the server offers it."""
    extension = (scope.get("extensions") or {}).get(EXTENSION)
    return extension if isinstance(extension, Takeover) else None


def _clean(protocol: Protocol, cycle: RequestResponseCycle) -> bool:
    """Whether the connection holds this one request, which was read whole and was not answered yet."""
    return not (
        protocol.cycle is not cycle
        or protocol.pipeline
        or protocol.scope is not cycle.scope  # the next request has begun
        or cycle.more_body
        or cycle.body
        or cycle.waiting_for_100_continue
        or cycle.response_started
        or cycle.response_complete
        or cycle.disconnected
        or protocol.transport.is_closing()
    )


def _runs_us() -> bool:
    """Whether this is uvicorn's own task of the request: a middleware that runs us in another one waits for us."""
    task = asyncio.current_task()
    code = getattr(task and task.get_coro(), "cr_code", None)
    return code is RequestResponseCycle.run_asgi.__code__
