"""The writer of a stream whose transport was taken over: all that a connection is from then on.

No task, no queue, no timer: the flush wakes it, it writes, and the transport says when it is full. What comes from the
client is read, so that its end is seen, and thrown away.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from rowcast.core.stream import StreamState
from rowcast.http.heads import MAX_HEAD
from rowcast.sockets import be_patient

if TYPE_CHECKING:
    from rowcast.core.stream import Stream
    from rowcast.hub import Hub

END_LIMIT = 5.0
"""Seconds that the last blocks of a stream may take to be sent."""


class TakenWriter(asyncio.Protocol):
    """The protocol of a taken-over transport. `connections` is where the server keeps track of its connections."""

    __slots__ = ("_connections", "_full", "_head", "_hub", "_received", "_stream", "_transport")

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._stream: Stream | None = None
        self._transport: asyncio.Transport | None = None
        self._connections: set[Any] | None = None
        self._full = False
        self._head = b""
        self._received = 0

    def take_over(self, transport: asyncio.Transport, connections: set[Any], head: bytes, *, full: bool) -> None:
        """Become the protocol of a transport, which is `full` if the server's own was told so. `head` goes out with the
        first block."""
        self._head = head
        self._transport = transport
        self._connections = connections
        self._full = full
        connections.add(self)
        transport.set_protocol(self)
        # Whatever the kernel does not take is too much: the stream catches up from the ring instead. The TLS layers of
        # asyncio and uvloop take "at the limit" for too much, and would never be done with 0.
        transport.set_write_buffer_limits(high=0 if transport.get_extra_info("sslcontext") is None else 1, low=0)

    def carry(self, stream: Stream, first: bytes) -> None:
        """Write a first block with what a stream has already, and what it will have, from now on."""
        self._stream = stream
        first, self._head = self._head + first, b""
        if self._transport is None:  # the client has gone in the meantime
            self._let_go()
        else:
            self._write(first)
            self._let_flush(not self._full)

    def close(self, last: bytes = b"") -> None:
        """Let what was written be sent, and a last block, for END_LIMIT at most."""
        if self._transport is not None:
            if last := self._head + last:
                self._transport.write(last)
            self._transport.close()
            if self._connections is not None and self in self._connections:
                asyncio.get_running_loop().call_later(END_LIMIT, self._transport.abort)

    # For the flush

    def wake(self) -> None:
        """There is something to take, or the stream has ended.

        What is raised ends the connection: left open, it would be silent for ever.
        """
        try:
            self._write()
        except Exception:
            if self._transport is not None:
                self._transport.abort()
            raise

    def _write(self, first: bytes = b"") -> None:
        stream, transport = self._stream, self._transport
        if stream is None or transport is None:
            return
        ended = stream.state is StreamState.ENDED
        if self._full and not ended:
            if first:
                transport.write(first)
            return  # `resume_writing` will have us woken
        data = first + stream.take()
        if data:
            transport.write(data)
        if ended:
            self._let_go()
            self.close()
        elif self._full:
            self._hub.lag(stream)
        elif data and stream.state is StreamState.BEHIND:
            # One page at a time: the others have their turn in between.
            self._hub.again(stream)

    # For the transport

    def data_received(self, data: bytes) -> None:
        """Whatever it is, a stream's connection answers nothing any more. Who sends more than a head is cut off."""
        self._received += len(data)
        if self._received > MAX_HEAD and self._transport is not None:
            self._transport.abort()

    def pause_writing(self) -> None:
        """The kernel takes no more. This comes from within `write`: it is only noted."""
        self._full = True
        self._let_flush(False)
        self._wait_longer(True)

    def resume_writing(self) -> None:
        """Everything was sent: go on with what was missed."""
        self._full = False
        self._let_flush(True)
        self._wait_longer(False)
        if self._stream is not None:
            self._hub.again(self._stream)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or we closed."""
        if self._connections is not None:
            self._connections.discard(self)
        self._transport = self._connections = None
        self._let_go()

    # For the server

    def shutdown(self) -> None:
        """The server ends."""
        if self._stream is not None:
            self._hub.end(self._stream, "draining")
        else:
            self.close()

    # Inside

    def _wait_longer(self, paused: bool) -> None:
        if self._transport is not None:
            be_patient(self._transport.get_extra_info("socket"), paused=paused)

    def _let_flush(self, may: bool) -> None:
        """Whether the flush may write to the transport without asking us."""
        if self._stream is not None:
            self._stream.sink = self._transport if may else None

    def _let_go(self) -> None:
        """Leave the stream, which leaves the hub and every queue."""
        self._let_flush(False)
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.wake = _nothing
            self._hub.leave(stream)


def _nothing() -> None:
    pass
