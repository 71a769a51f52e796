"""Limits of a request's head, which uvicorn has none of before the application runs (64 MB of header were taken).

A head may have MAX_HEAD bytes and MAX_FIELDS fields, else the answer is 431 (RFC 6585, section 5); it must be there
within HEAD_TIME of the connection, or of its first byte on a connection that was used before, else the connection is
closed. Whoever sends too much while an answer is under way is cut off: nothing else could be said in the middle of it.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rowcast.sockets import be_patient

MAX_HEAD = 32 * 1024
"""Bytes of the request's target and its fields."""

MAX_FIELDS = 100

HEAD_TIME = 10.0
"""Seconds."""

LAST_CHANCE = 1.0
"""Seconds that a new connection has to send its request when the server ends: a proxy may just have sent it."""

GO_AWAY = "rowcast.go_away"
"""An ASGI extension of requests by HTTP/2: a function to be called when no more should come by their connection."""

_REFUSAL = (
    b'{"status":431,"error":"the head of the request is too large: at most %d bytes and %d fields are taken"}'
    % (MAX_HEAD, MAX_FIELDS)
)


class HeadTooLarge(Exception):
    """Raised within the parser, which then stops."""


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol with limits of the head, and patience for clients that read slowly."""

    _head_timer: asyncio.TimerHandle | None = None
    _in_head = True
    _raw = _size = _fields = 0
    _too_large = False
    _last = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection was accepted."""
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(HEAD_TIME, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The parser keeps a value until it is whole, so bytes are counted here, and exactly in its callbacks."""
        if self._in_head:
            self._raw += len(data)
        super().data_received(data)
        if self._in_head and self._raw > MAX_HEAD + len(data) and not self._too_large:
            self._refuse()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIME, self._too_slow)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the target."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head, or of a trailer, which counts like one."""
        self._fields += 1
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head = False
        self._stop_timer()
        before = self.cycle
        super().on_headers_complete()
        if self._last and self.cycle is not before:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """The request is there; what comes next is another head."""
        super().on_message_complete()
        self._in_head = True
        self._raw = self._size = self._fields = 0

    def send_400_response(self, msg: str) -> None:
        """What the parser refuses."""
        if self._too_large or self._answering():
            self._refuse()
        else:
            super().send_400_response(msg)

    def pause_writing(self) -> None:
        """The client does not read."""
        be_patient(self.transport.get_extra_info("socket"), paused=True)
        super().pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        be_patient(self.transport.get_extra_info("socket"), paused=False)
        super().resume_writing()

    def shutdown(self) -> None:
        """The server ends. A request that may be on its way on a new connection is still answered."""
        if self.cycle is None and not self._last:
            self._last = True
            self.loop.call_later(LAST_CHANCE, self.shutdown)
        else:
            super().shutdown()

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > MAX_HEAD or self._fields > MAX_FIELDS:
            self._too_large = True
            raise HeadTooLarge

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self) -> None:
        self._too_large = True
        self._stop_timer()
        if self.transport.is_closing():
            return
        if self._answering():
            self.transport.abort()
            return
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_REFUSAL), _REFUSAL)
        )
        self.transport.close()

    def _too_slow(self) -> None:
        self._head_timer = None
        if self._answering():
            # We have not read on because of the answer, perhaps: judge it when that is done.
            self._head_timer = self.loop.call_later(HEAD_TIME, self._too_slow)
        elif not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
