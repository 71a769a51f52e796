"""HTTP/2 (RFC 9113) without a proxy, `rowcast serve --http2`: many streams of one browser on one connection.

uvicorn speaks it by way of zttp. `Protocol` looks at each new connection: one that agreed on `h2` by ALPN, or begins
with HTTP/2's preface, is `Multiplexed`; every other one speaks HTTP/1.1 as ever, where streams take their transports
over. On HTTP/2 they go through ASGI `send`: a connection has many streams, so there is nothing to be taken over.

What uvicorn does not do, and we need:

- *Bounded memory.* zttp keeps what a client's window has no room for. A stream's next block waits until that is gone,
  so a client that does not read makes its stream fall behind, as elsewhere.
- *Leaving in order.* A request that comes while we drain must be answered by the application, with 200 and
  `rowcast.bye`: after uvicorn's 503 a browser's EventSource would never come back. GOAWAY makes the browser open
  another connection for its next request. It is sent while nothing but streams is under way: some clients (Python's
  h2) take it for the end of everything, and a call must not be left without its answer.
- *A limit for silence*: a connection that asks for nothing is closed, as one that sends no head is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import partial
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto_zttp_impl import AutoZttpProtocol
from uvicorn.protocols.http.zttp_h2_impl import RequestResponseCycle, ZttpH2Protocol

from rowcast.http.heads import GO_AWAY, HEAD_TIME
from rowcast.http.takeover import Protocol as Http1Protocol
from rowcast.sockets import be_patient, tune

if TYPE_CHECKING:
    import zttp
    from uvicorn._types import ASGISendEvent

ALPN = ("h2", "http/1.1")
"""What is offered in a TLS handshake, the better first."""

LAST_STREAM = 2**31 - 1
"""What GOAWAY says is still answered: everything. A lower number would have clients send requests again that we did
answer (RFC 9113, section 6.8)."""


class Protocol(AutoZttpProtocol):
    """What a new connection has until it is known which HTTP it speaks."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection was accepted."""
        super().connection_made(transport)
        if self.timeout_task is not None:
            self.timeout_task.cancel()
            self.timeout_task = self.loop.call_later(HEAD_TIME, transport.close)

    def _switch(self, http2: bool, initial_data: bytes = b"") -> None:
        kind = Multiplexed if http2 else Http1Protocol
        protocol = kind(self.config, self.server_state, self.app_state, self.loop)
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if initial_data:
            protocol.data_received(initial_data)


class Multiplexed(ZttpH2Protocol):
    """A connection that speaks HTTP/2."""

    _idle: asyncio.TimerHandle | None = None
    _leaving = _gone = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection is there."""
        self._credit = asyncio.Event()
        self._streams: set[int] = set()
        super().connection_made(transport)
        tune(transport.get_extra_info("socket"))
        self._idle = self.loop.call_later(HEAD_TIME, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._asked()
        super().connection_lost(exc)
        self._credit.set()

    def data_received(self, data: bytes) -> None:
        """Perhaps the client has given room."""
        super().data_received(data)
        credit, self._credit = self._credit, asyncio.Event()
        credit.set()

    def handle_request(self, event: zttp.Request) -> None:
        """A request; also while we end, when uvicorn would refuse it."""
        self._asked()
        ending, self.shutdown_requested = self.shutdown_requested, False
        try:
            super().handle_request(event)
        finally:
            self.shutdown_requested = ending
        cycle = self.cycles[event.stream_id]
        scope: MutableMapping[str, Any] = cycle.scope  # type: ignore[assignment]
        scope["extensions"] = {**(scope.get("extensions") or {}), GO_AWAY: self.go_away}
        cycle.send = partial(self._send, cycle, cycle.send)  # type: ignore[method-assign]  # its task has not begun

    def go_away(self) -> None:
        """Ask the client to send its next requests by another connection; those that it sent are answered."""
        self._leaving = True
        if not self._gone and self.cycles.keys() <= self._streams and not self.transport.is_closing():
            self._gone = True
            self.conn.close(0, LAST_STREAM)
            self.flush()

    def on_stream_closed(self) -> None:
        """A request is done with, one way or the other."""
        self._streams &= self.cycles.keys()
        if self._leaving:
            self.go_away()
        super().on_stream_closed()

    def shutdown(self) -> None:
        """The server ends."""
        self.go_away()
        super().shutdown()

    def pause_writing(self) -> None:
        """The client's kernel takes no more."""
        be_patient(self.transport.get_extra_info("socket"), paused=True)
        super().pause_writing()

    def resume_writing(self) -> None:
        """It takes more again."""
        be_patient(self.transport.get_extra_info("socket"), paused=False)
        super().resume_writing()

    async def _send(
        self, cycle: RequestResponseCycle, send: Callable[[Any], Awaitable[None]], message: ASGISendEvent
    ) -> None:
        if message["type"] == "http.response.body":
            while cycle.stream.pending_bytes and not cycle.disconnected:
                await self._credit.wait()
        await send(message)
        if message["type"] == "http.response.start" and _is_stream(message["headers"]):
            self._streams.add(cycle.stream.stream_id)

    def _asked(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None


def _is_stream(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)
